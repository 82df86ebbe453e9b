using System.IO.Hashing;
using Megatron.Compute.Native;
using Microsoft.Win32.SafeHandles;
using static TorchSharp.torch;

namespace Megatron.Compute.Checkpointing;

/// <summary>
/// Writes whole Hugging Face tensors from blocks that may lie on many ranks. All ranks hold the same plan, so each opens the same files,
/// writes the same headers and puts its own blocks in place (pwrite); no rank ever holds a whole tensor and nothing is sent. Needs a file
/// system that all ranks share. A file that one rank writes alone and in order is hashed on the way, all others at commit.
/// </summary>
internal sealed class ModelFiles : IDisposable
{
    private readonly Dictionary<string, (OpenFile File, long Start, SafetensorsSpec Spec)> places = new(StringComparer.Ordinal);
    private readonly List<OpenFile> files = [];

    /// <summary>Opens (or makes) the files of the plan in <paramref name="folder"/>.</summary>
    /// <exception cref="IOException">A file cannot be made or the disk is full.</exception>
    public ModelFiles(string folder, HfShardPlan plan)
    {
        try
        {
            foreach (var shard in plan.Shards) Open(Path.Combine(folder, shard.FileName), shard);
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <summary>Writes a block in place, cast to the planned dtype.</summary>
    /// <exception cref="InvalidOperationException">The plan has no such tensor, or another shape.</exception>
    /// <exception cref="IOException">The disk is full or failed.</exception>
    public unsafe void Write(WeightBlock weight)
    {
        var block = weight.Block;
        if (!places.TryGetValue(block.Name, out var place) || !place.Spec.Shape.AsSpan().SequenceEqual(block.GlobalShape))
            throw new InvalidOperationException($"The plan of the weight files has no tensor {block.Name} of shape [{string.Join(", ", block.GlobalShape)}].");
        if (weight.Values.numel() != block.NumElements)
            throw new InvalidOperationException($"The block of {block.Name} has {block.NumElements} elements, its values {weight.Values.numel()}.");
        var dtype = TensorBytes.ToScalarType(place.Spec.DType) ?? throw new InvalidOperationException($"libtorch has no dtype {place.Spec.DType}.");
        using var cast = weight.Values.to(dtype, CPU);
        using var contiguous = cast.contiguous();
        var runs = BlockRange.Whole(block.Offset, block.Shape).Intersect(BlockRange.WholeTensor(block.GlobalShape));
        BlockTransfer.Write(runs, place.Spec.DType.SizeBytes(), TensorBytes.Pointer(contiguous), place.File.Handle, place.Start);
        place.File.Append(block.NumElements == place.Spec.NumElements ? place.Spec.Name : null, place.Start, contiguous);
    }

    /// <summary>Waits until what this rank wrote is on the device.</summary>
    /// <returns>The files that this rank wrote alone, with hashes.</returns>
    /// <exception cref="IOException">fsync failed.</exception>
    public IReadOnlyList<HashedFile> Finish()
    {
        foreach (var file in files) FileSync.Flush(file.Handle, file.Path);
        return [.. files.Select(file => file.Hashed()).OfType<HashedFile>()];
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var file in files) file.Handle.Dispose();
    }

    private void Open(string path, HfShard shard)
    {
        var header = SafetensorsWriter.MakeHeader(shard.Tensors, SafetensorsWriter.PyTorchFormat);
        // Other ranks write to the same file: no lock, and the content that stands is kept.
        var file = new OpenFile(File.OpenHandle(path, FileMode.OpenOrCreate, FileAccess.Write, FileShare.ReadWrite), path, shard, header);
        files.Add(file);
        RandomAccess.Write(file.Handle, header, 0);
        var start = (long)header.Length;
        foreach (var tensor in shard.Tensors)
        {
            places.Add(tensor.Name, (file, start, tensor));
            start += tensor.SizeBytes;
        }
        // The same length from every rank. A block that nobody writes would stay zero: the commit compares the blocks of all receipts.
        RandomAccess.SetLength(file.Handle, start);
    }

    /// <summary>A weight file, and its hash as long as this rank writes whole tensors one after another.</summary>
    private sealed class OpenFile
    {
        private readonly HfShard shard;
        private readonly XxHash128 hash = new();
        private readonly List<TensorHash> tensors = [];
        private long position;
        private bool isInOrder = true;

        public SafeFileHandle Handle { get; }

        public string Path { get; }

        public OpenFile(SafeFileHandle handle, string path, HfShard shard, byte[] header)
        {
            (Handle, Path, this.shard, position) = (handle, path, shard, header.Length);
            hash.Append(header);
        }

        /// <param name="whole">Name of the tensor when all of it was written, null for a block.</param>
        public void Append(string? whole, long start, Tensor values)
        {
            isInOrder &= whole is not null && start == position;
            if (!isInOrder || whole is null) return;
            var own = new XxHash128();
            TensorBytes.ForEachSlice(values, (slice, _) =>
            {
                hash.Append(slice);
                own.Append(slice);
            });
            position += values.numel() * values.element_size();
            tensors.Add(new TensorHash(whole, WeightHashes.Text(own)));
        }

        public HashedFile? Hashed() => isInOrder && tensors.Count == shard.Tensors.Count
            ? new HashedFile(new CheckpointFile(shard.FileName, position, WeightHashes.Text(hash)), tensors)
            : null;
    }
}
