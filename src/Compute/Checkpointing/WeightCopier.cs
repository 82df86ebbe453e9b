using System.Collections.Concurrent;
using System.IO.Hashing;
using static TorchSharp.torch;

namespace Megatron.Compute.Checkpointing;

/// <summary>
/// Copies weights from any source into the files of a plan, piece by piece: one thread reads and casts, another hashes and writes, and the sync of
/// a file runs beside the next file. Memory is that of a few pieces, whatever the size of a tensor.
/// </summary>
public sealed class WeightCopier
{
    // Small enough to be hashed twice and written out of a core's cache, large enough that calls cost nothing.
    private const int PieceBytes = 1 << 20;
    private const int PiecesMax = 8;

    private readonly IWeightSource source;
    private readonly HfShardPlan plan;
    private readonly string folder;
    private readonly ConversionJournal journal;

    /// <param name="source">Where the weights come from.</param>
    /// <param name="plan">Files, types and order; each tensor has the shape that the source has.</param>
    /// <param name="folder">Where the files go; exists.</param>
    /// <param name="journal">Remembers finished files, so that a conversion that was interrupted goes on.</param>
    public WeightCopier(IWeightSource source, HfShardPlan plan, string folder, ConversionJournal journal) =>
        (this.source, this.plan, this.folder, this.journal) = (source, plan, folder, journal);

    /// <summary>Writes all files that are not finished yet and syncs them.</summary>
    /// <returns>All files of the plan, in its order.</returns>
    public IReadOnlyList<CheckpointFile> Write() => [.. Run().Select(file => file.File)];

    /// <summary>The same.</summary>
    /// <returns>All files of the plan with their hashes, in its order.</returns>
    /// <exception cref="Configuration.ConfigException">The source does not hold what it announces.</exception>
    /// <exception cref="IOException">The disk is full or failed.</exception>
    internal IReadOnlyList<HashedFile> Run()
    {
        var files = new HashedFile[plan.Shards.Count];
        BackgroundWork<HashedFile>? syncing = null;
        var syncingIndex = 0;
        for (var index = 0; index < files.Length; index++)
        {
            var shard = plan.Shards[index];
            if (journal.Find(folder, shard) is { } finished)
            {
                files[index] = finished;
                continue;
            }
            var (writer, hashes) = Copy(shard);
            if (syncing is not null) journal.Add(files[syncingIndex] = syncing.Take());
            (syncing, syncingIndex) = (new BackgroundWork<HashedFile>($"sync {shard.FileName}", () => Finish(writer, hashes)), index);
        }
        if (syncing is not null) journal.Add(files[syncingIndex] = syncing.Take());
        return files;
    }

    private static HashedFile Finish(SafetensorsWriter writer, IReadOnlyList<TensorHash> hashes)
    {
        using (writer) return new HashedFile(writer.Finish(), hashes);
    }

    private (SafetensorsWriter Writer, IReadOnlyList<TensorHash> Hashes) Copy(HfShard shard)
    {
        var writer = new SafetensorsWriter(Path.Combine(folder, shard.FileName), shard.Tensors, SafetensorsWriter.PyTorchFormat);
        var hashes = new List<TensorHash>();
        using var pieces = new Pieces();
        var reading = new BackgroundWork<object>($"read for {shard.FileName}", () => Read(shard, pieces));
        try
        {
            foreach (var tensor in shard.Tensors)
            {
                var hash = new XxHash128();
                for (var missing = tensor.SizeBytes; missing > 0;)
                {
                    if (!pieces.TryTake(out var piece)) reading.Take(); // the reader ended early: what it threw is thrown here
                    writer.Write(piece.AsSpan());
                    hash.Append(piece.AsSpan());
                    missing -= piece.Count;
                    pieces.Return(piece);
                }
                hashes.Add(new TensorHash(tensor.Name, WeightHashes.Text(hash)));
            }
            reading.Take();
            return (writer, hashes);
        }
        catch
        {
            pieces.Abandon();
            reading.Join();
            writer.Dispose();
            throw;
        }
    }

    private object Read(HfShard shard, Pieces pieces)
    {
        try
        {
            foreach (var tensor in shard.Tensors)
            {
                var stored = source.Find(tensor.Name) ?? throw new InvalidOperationException($"{source.Folder} has no tensor {tensor.Name}.");
                var elements = PieceBytes / Math.Max(stored.DType.SizeBytes(), tensor.DType.SizeBytes());
                for (var begin = 0L; begin < tensor.NumElements; begin += elements)
                {
                    var count = (int)Math.Min(elements, tensor.NumElements - begin);
                    var piece = pieces.Rent();
                    if (stored.DType == tensor.DType) source.ReadElements(tensor.Name, begin, piece.AsSpan(0, count * stored.DType.SizeBytes()));
                    else ReadCast(tensor, stored.DType, begin, piece.AsSpan(0, count * tensor.DType.SizeBytes()), count);
                    pieces.Add(new ArraySegment<byte>(piece, 0, count * tensor.DType.SizeBytes()));
                }
            }
            return pieces;
        }
        finally
        {
            pieces.Complete();
        }
    }

    private unsafe void ReadCast(SafetensorsSpec tensor, SafetensorsDType stored, long begin, Span<byte> destination, int count)
    {
        using var scope = NewDisposeScope();
        var raw = empty(count, dtype: ScalarTypeOf(stored), device: CPU);
        source.ReadElements(tensor.Name, begin, new Span<byte>(TensorBytes.Pointer(raw), count * stored.SizeBytes()));
        var cast = raw.to_type(ScalarTypeOf(tensor.DType));
        new Span<byte>(TensorBytes.Pointer(cast), destination.Length).CopyTo(destination);
    }

    private static ScalarType ScalarTypeOf(SafetensorsDType dtype) =>
        TensorBytes.ToScalarType(dtype) ?? throw new InvalidOperationException($"libtorch has no dtype {dtype}.");

    /// <summary>A few buffers that go round between the reader and the writer.</summary>
    private sealed class Pieces : IDisposable
    {
        private readonly BlockingCollection<byte[]> free = [];
        private readonly BlockingCollection<ArraySegment<byte>> filled = [];
        private readonly CancellationTokenSource abandoned = new();

        public Pieces()
        {
            for (var i = 0; i < PiecesMax; i++) free.Add(new byte[PieceBytes]);
        }

        /// <exception cref="OperationCanceledException">The writer gave up.</exception>
        public byte[] Rent() => free.Take(abandoned.Token);

        public void Return(ArraySegment<byte> piece) => free.Add(piece.Array ?? []);

        public void Add(ArraySegment<byte> piece) => filled.Add(piece);

        /// <returns>False when the reader has ended and nothing is left.</returns>
        public bool TryTake(out ArraySegment<byte> piece) => filled.TryTake(out piece, Timeout.Infinite);

        public void Complete() => filled.CompleteAdding();

        public void Abandon() => abandoned.Cancel();

        public void Dispose()
        {
            free.Dispose();
            filled.Dispose();
            abandoned.Dispose();
        }
    }
}
