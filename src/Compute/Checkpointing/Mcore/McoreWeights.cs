using System.Globalization;
using Megatron.Compute.Configuration;
using Megatron.Compute.Models;

namespace Megatron.Compute.Checkpointing.Mcore;

/// <summary>
/// The model weights of a <c>torch_dist</c> checkpoint of Megatron-LM by their Hugging Face names. Optimizer state and objects are passed over;
/// nothing in the folder is executed.
/// </summary>
public sealed class McoreWeights : IWeightSource
{
    private readonly IReadOnlyDictionary<string, DcpTensor> tensors;
    private readonly IReadOnlyDictionary<string, McorePlace> places;
    private readonly Dictionary<string, WeightInfo> weights = new(StringComparer.Ordinal);
    private readonly DcpTensorFile files;

    /// <inheritdoc/>
    public string Folder { get; }

    /// <inheritdoc/>
    public IReadOnlyCollection<string> Names => weights.Keys;

    /// <inheritdoc/>
    public string Fingerprint => string.Create(CultureInfo.InvariantCulture, $"{Folder}:{File.GetLastWriteTimeUtc(Path.Combine(Folder, DcpMetadata.FileName)).Ticks}");

    /// <summary>Opens a folder.</summary>
    /// <param name="folder">The folder that holds <c>.metadata</c>.</param>
    /// <param name="model">Architecture: how the fused tensors are cut.</param>
    /// <exception cref="ConfigException">MCORE001 to MCORE004.</exception>
    public McoreWeights(string folder, ModelConfig model)
    {
        Folder = folder;
        tensors = DcpMetadata.Read(folder);
        places = McoreLayout.Map(model, tensors);
        foreach (var tensor in HfTensorCatalog.Of(model))
            if (places.TryGetValue(tensor.Name, out var place)) weights.Add(tensor.Name, new WeightInfo(tensors[place.Key].DType, tensor.Shape));
        files = new DcpTensorFile(folder);
    }

    /// <summary>The folder with <c>.metadata</c> that <c>--mcore_model</c> means: itself, or the iteration that its tracker file names.</summary>
    /// <returns>Null when there is none.</returns>
    public static string? FindFolder(string path)
    {
        if (File.Exists(Path.Combine(path, DcpMetadata.FileName))) return path;
        var tracker = Path.Combine(path, CheckpointStore.HintFileName);
        if (!File.Exists(tracker) || new FileInfo(tracker).Length > 100) return null;
        var text = File.ReadAllText(tracker).Trim();
        var name = text == "release" ? text : long.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out var iteration) ? CheckpointStore.FolderName(iteration) : null;
        return name is not null && File.Exists(Path.Combine(path, name, DcpMetadata.FileName)) ? Path.Combine(path, name) : null;
    }

    /// <summary>Name, type and shape of every tensor in the folder, optimizer state included.</summary>
    /// <exception cref="ConfigException">MCORE001 to MCORE004.</exception>
    public static IReadOnlyList<(string Key, WeightInfo Info, int NumChunks)> Describe(string folder) =>
        [.. DcpMetadata.Read(folder).Values.OrderBy(tensor => tensor.Key, StringComparer.Ordinal).Select(tensor => (tensor.Key, new WeightInfo(tensor.DType, tensor.Shape), tensor.Chunks.Count))];

    /// <inheritdoc/>
    public WeightInfo? Find(string name) => weights.GetValueOrDefault(name);

    /// <inheritdoc/>
    public unsafe void ReadElements(string name, long begin, Span<byte> destination)
    {
        var (place, info) = (places[name], weights[name]);
        var (tensor, elementBytes) = (tensors[place.Key], info.DType.SizeBytes());
        var rowLength = info.Shape.Skip(1).Aggregate(1L, (product, extent) => product * extent);
        var end = begin + destination.Length / elementBytes;
        var filled = 0L;
        fixed (byte* pointer = destination)
            foreach (var run in place.Runs)
            {
                long first = Math.Max(begin, run.HfRow * rowLength), last = Math.Min(end, (run.HfRow + run.Count) * rowLength);
                if (first >= last) continue;
                var wanted = new BlockRange(
                    [.. place.Leading, run.McoreRow, .. info.Shape.Skip(1).Select(_ => 0L)], [.. place.Leading.Select(_ => 1L), run.Count, .. info.Shape.Skip(1)],
                    first - run.HfRow * rowLength, last - run.HfRow * rowLength);
                filled += Gather(tensor, wanted, elementBytes, pointer + (first - begin) * elementBytes);
            }
        if (filled != end - begin)
            throw new ConfigException("MCORE004", string.Create(CultureInfo.InvariantCulture, $"{Folder}: {filled} of {end - begin} elements of {Printable.Quote(name)} were found; the checkpoint is damaged."));
    }

    /// <inheritdoc/>
    public void Dispose() => files.Dispose();

    private unsafe long Gather(DcpTensor tensor, BlockRange wanted, int elementBytes, byte* destination)
    {
        var filled = 0L;
        foreach (var chunk in tensor.Chunks)
        {
            var runs = BlockRange.Whole(chunk.Offset, chunk.Shape).Intersect(wanted).ToList();
            if (runs.Count == 0) continue;
            var data = files.Locate(tensor, chunk);
            filled += BlockTransfer.Gather(runs, elementBytes, (bytes, offset) => ReadExactly(data, offset, bytes, chunk.File), destination);
        }
        return filled;
    }

    private void ReadExactly(DcpData data, long offset, Span<byte> destination, string file)
    {
        for (var done = 0; done < destination.Length;)
        {
            var count = RandomAccess.Read(data.Handle, destination[done..], data.Position + offset + done);
            if (count == 0) throw new ConfigException("MCORE005", $"{Path.Combine(Folder, file)} became shorter while it was read; nothing may write to it.");
            done += count;
        }
    }
}
