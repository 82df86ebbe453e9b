using Megatron.Compute.Native;
using Microsoft.Win32.SafeHandles;
using static TorchSharp.torch;

namespace Megatron.Compute.Checkpointing;

/// <summary>
/// Writes whole Hugging Face tensors from blocks that may lie on many ranks. All ranks hold the same plan, so each opens the same files,
/// writes the same headers and puts its own blocks in place (pwrite); no rank ever holds a whole tensor and nothing is sent. Needs a file
/// system that all ranks share. Hashes are taken at commit, when the files are complete.
/// </summary>
internal sealed class ModelFiles : IDisposable
{
    private readonly Dictionary<string, (SafeFileHandle Handle, string Path, long Start, SafetensorsSpec Spec)> places = new(StringComparer.Ordinal);
    private readonly List<(SafeFileHandle Handle, string Path)> files = [];

    /// <summary>Opens (or makes) the files of the plan in <paramref name="folder"/>.</summary>
    /// <exception cref="IOException">A file cannot be made or the disk is full.</exception>
    public ModelFiles(string folder, HfShardPlan plan)
    {
        try
        {
            foreach (var shard in plan.Shards) Open(Path.Combine(folder, shard.FileName), shard.Tensors);
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
        BlockTransfer.Write(runs, place.Spec.DType.SizeBytes(), TensorBytes.Pointer(contiguous), place.Handle, place.Start);
    }

    /// <summary>Waits until what this rank wrote is on the device.</summary>
    /// <exception cref="IOException">fsync failed.</exception>
    public void Flush()
    {
        foreach (var (handle, path) in files) FileSync.Flush(handle, path);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var (handle, _) in files) handle.Dispose();
    }

    private void Open(string path, IReadOnlyList<SafetensorsSpec> tensors)
    {
        var header = SafetensorsWriter.MakeHeader(tensors, SafetensorsWriter.PyTorchFormat);
        // Other ranks write to the same file: no lock, and the content that stands is kept.
        var handle = File.OpenHandle(path, FileMode.OpenOrCreate, FileAccess.Write, FileShare.ReadWrite);
        files.Add((handle, path));
        RandomAccess.Write(handle, header, 0);
        var start = (long)header.Length;
        foreach (var tensor in tensors)
        {
            places.Add(tensor.Name, (handle, path, start, tensor));
            start += tensor.SizeBytes;
        }
        // The same length from every rank. A block that nobody writes would stay zero: the commit compares the blocks of all receipts.
        RandomAccess.SetLength(handle, start);
    }
}
