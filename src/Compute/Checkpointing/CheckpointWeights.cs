using System.Globalization;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Checkpointing;

/// <summary>The weights of a checkpoint that holds training slices only (<c>--save_safetensors false</c>): its fp32 masters.</summary>
public sealed class CheckpointWeights : IWeightSource
{
    private readonly StoredCheckpoint checkpoint;
    private readonly Dictionary<string, WeightInfo> weights;
    private readonly Dictionary<string, SafetensorsFile> files = new(StringComparer.Ordinal);
    private readonly ILookup<string, (string File, CheckpointSlice Slice)> masters;

    /// <inheritdoc/>
    public string Folder => checkpoint.Folder;

    /// <inheritdoc/>
    public IReadOnlyCollection<string> Names => weights.Keys;

    /// <inheritdoc/>
    public string Fingerprint => $"{checkpoint.Folder}:{checkpoint.Manifest.SaveId}:{checkpoint.Manifest.CreatedUtc.UtcTicks.ToString(CultureInfo.InvariantCulture)}";

    /// <param name="checkpoint">Verified; its manifest says that the slices cover every tensor.</param>
    /// <exception cref="ConfigException">A file is refused.</exception>
    public CheckpointWeights(StoredCheckpoint checkpoint)
    {
        this.checkpoint = checkpoint;
        masters = checkpoint.Manifest.State
            .SelectMany(state => state.Slices.Where(slice => slice.Kind == StateKind.Master).Select(slice => (state.File, Slice: slice)))
            .ToLookup(pair => pair.Slice.Tensor, StringComparer.Ordinal);
        foreach (var state in checkpoint.Manifest.State) files[state.File] = SafetensorsFile.Open(Path.Combine(checkpoint.Folder, state.File), strict: true);
        weights = checkpoint.Manifest.Tensors.ToDictionary(tensor => tensor.Name, tensor => new WeightInfo(TypeOf(tensor), tensor.Shape), StringComparer.Ordinal);
    }

    /// <inheritdoc/>
    public WeightInfo? Find(string name) => weights.GetValueOrDefault(name);

    /// <inheritdoc/>
    public unsafe void ReadElements(string name, long begin, Span<byte> destination)
    {
        var (dtype, shape) = weights[name];
        var count = destination.Length / dtype.SizeBytes();
        var wanted = new BlockRange(new long[shape.Length], shape, begin, begin + count);
        var filled = 0L;
        fixed (byte* pointer = destination)
            foreach (var (fileName, slice) in masters[name])
            {
                var file = files[fileName];
                filled += BlockTransfer.Gather(slice.Range.Intersect(wanted), dtype.SizeBytes(), (bytes, offset) => file.Read(slice.Entry, offset, bytes), pointer);
            }
        if (filled != count)
            throw new ConfigException("CKPT013", string.Create(CultureInfo.InvariantCulture, $"{Folder}: {filled} of {count} elements of {Printable.Quote(name)} were found; the checkpoint is incomplete."));
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var file in files.Values) file.Dispose();
    }

    private SafetensorsDType TypeOf(ManifestTensor tensor)
    {
        var (file, slice) = masters[tensor.Name].First();
        return files[file].Entry(slice.Entry).DType;
    }
}
