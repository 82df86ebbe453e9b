using System.Globalization;
using Megatron.Compute.Configuration;
using Megatron.Compute.Ops;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Checkpointing;

/// <summary>
/// The weights of a Hugging Face folder: <c>model.safetensors</c>, or the shards of <c>model.safetensors.index.json</c>. Reads only the rows
/// and columns that are asked for, so memory is bounded by one block. Pickle files (.bin, .pt, .pth) are refused, never opened.
/// </summary>
public sealed class HfWeightFolder : IWeightSource
{
    private const int ThreadsMax = 4;
    private const int DirectPieceBytes = 64 << 20;

    private readonly List<SafetensorsFile> files = [];
    private readonly Dictionary<string, SafetensorsFile> fileOf = new(StringComparer.Ordinal);

    /// <summary>The folder.</summary>
    public string Folder { get; }

    /// <summary>Names of all tensors.</summary>
    public IReadOnlyCollection<string> Names => fileOf.Keys;

    private HfWeightFolder(string folder) => Folder = folder;

    /// <summary>Opens the folder, checks the headers of all weight files and the index against them.</summary>
    /// <exception cref="ConfigException">MODEL005 no usable weights; ST0xx a file is refused; ST025 index and files disagree (all cases listed).</exception>
    public static HfWeightFolder Open(string folder)
    {
        if (!Directory.Exists(folder)) throw new ConfigException("MODEL005", $"The model folder {folder} does not exist; check the path.");
        var weights = new HfWeightFolder(folder);
        try
        {
            var index = Path.Combine(folder, HfShardPlan.IndexFileName);
            if (File.Exists(Path.Combine(folder, HfShardPlan.SingleFileName))) weights.AddFile(HfShardPlan.SingleFileName);
            else if (File.Exists(index)) weights.AddShards(HfIndex.Parse(StrictJson.ReadFile(index, "ST025"), index), index);
            else throw NoWeights(folder);
            return weights;
        }
        catch
        {
            weights.Dispose();
            throw;
        }
    }

    /// <summary>True when the folder has safetensors weights, whatever their state.</summary>
    public static bool HasWeights(string folder) =>
        File.Exists(Path.Combine(folder, HfShardPlan.SingleFileName)) || File.Exists(Path.Combine(folder, HfShardPlan.IndexFileName));

    /// <summary>True when the folder has the tensor.</summary>
    public bool Contains(string name) => fileOf.ContainsKey(name);

    /// <summary>Dtype, shape and place of a tensor.</summary>
    /// <exception cref="ConfigException">MODEL001: no such tensor.</exception>
    public SafetensorsEntry Entry(string name) => FileOf(name).Entry(name);

    /// <inheritdoc/>
    public string Fingerprint => string.Join('|', files.Select(file => string.Create(CultureInfo.InvariantCulture, $"{file.Path}:{file.FileBytes}:{File.GetLastWriteTimeUtc(file.Path).Ticks}")));

    /// <inheritdoc/>
    public WeightInfo? Find(string name) => fileOf.TryGetValue(name, out var file) ? new WeightInfo(file.Entry(name).DType, file.Entry(name).Shape) : null;

    /// <inheritdoc/>
    public void ReadElements(string name, long begin, Span<byte> destination) => FileOf(name).Read(name, begin * Entry(name).DType.SizeBytes(), destination);

    /// <summary>Compares the folder with what a model expects, see <see cref="WeightCheck.Run"/>.</summary>
    public void Check(IReadOnlyList<ExpectedTensor> expected, IReadOnlySet<string> optional) => WeightCheck.Run(this, expected, optional);

    /// <summary>Reads a whole tensor in the file's dtype; the caller's dispose scope owns it.</summary>
    /// <exception cref="ConfigException">MODEL001 no such tensor; ST009 its dtype cannot be held.</exception>
    public Tensor ReadTensor(string name) => FileOf(name).ReadTensor(name);

    /// <summary>
    /// Reads one block of a tensor, only its own rows and columns, and casts it to the destination's dtype and device.
    /// </summary>
    /// <param name="block">Where the values lie in the Hugging Face tensor; <see cref="TensorBlock.FlatOffset"/> is not used.</param>
    /// <param name="destination">1-D, as many elements as the block, filled in the block's row-major order.</param>
    /// <exception cref="ConfigException">MODEL001 no such tensor; MODEL003 its shape is not the block's global shape.</exception>
    public void ReadBlock(TensorBlock block, Tensor destination)
    {
        var (file, entry) = Locate(block, destination);
        if (block.NumElements == entry.NumElements)
        {
            file.ReadInto(block.Name, destination, 0);
            return;
        }
        var dtype = file.LoadableType(entry);
        var isDirect = destination.dtype == dtype && destination.device_type == DeviceType.CPU && destination.is_contiguous();
        using var staging = isDirect ? destination.alias() : empty(block.NumElements, dtype: dtype, device: CPU);
        Gather(file, entry, block, staging);
        if (isDirect) return;
        using var shaped = staging.view(destination.shape);
        destination.copy_(shaped);
    }

    /// <summary>
    /// The same for all blocks of a rank. Those that need no cast are read by several threads straight into the tensors.
    /// </summary>
    /// <exception cref="ConfigException">As <see cref="ReadBlock"/>.</exception>
    public void ReadBlocks(IReadOnlyList<WeightBlock> wanted)
    {
        var direct = new List<DirectRead>();
        foreach (var (block, values) in wanted)
        {
            var (file, entry) = Locate(block, values);
            if (values.device_type == DeviceType.CPU && values.is_contiguous() && values.dtype == TensorBytes.ToScalarType(entry.DType)) AddDirect(direct, file, entry, block, values);
            else ReadBlock(block, values);
        }
        FileThreads.ForEach(
            [.. direct.OrderByDescending(read => read.Wanted.Count)], ThreadsMax, direct.Sum(read => read.Wanted.Count * read.Entry.DType.SizeBytes()), static read => read.Run());
    }

    /// <summary>Counts NaN and infinite values of a tensor.</summary>
    public long CountNonFinite(string name)
    {
        using var scope = NewDisposeScope();
        return ReadTensor(name).isfinite().logical_not().sum().item<long>();
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var file in files) file.Dispose();
    }

    private static unsafe void Gather(SafetensorsFile file, SafetensorsEntry entry, TensorBlock block, Tensor destination)
    {
        var runs = BlockRange.WholeTensor(entry.Shape).Intersect(BlockRange.Whole(block.Offset, block.Shape));
        BlockTransfer.Gather(runs, entry.DType.SizeBytes(), (bytes, offset) => file.Read(entry.Name, offset, bytes), TensorBytes.Pointer(destination));
    }

    private (SafetensorsFile File, SafetensorsEntry Entry) Locate(TensorBlock block, Tensor destination)
    {
        var file = FileOf(block.Name);
        var entry = file.Entry(block.Name);
        if (!entry.Shape.AsSpan().SequenceEqual(block.GlobalShape))
            throw new ConfigException("MODEL003", $"{Folder}: tensor {Printable.Quote(block.Name)} with shape {entry.ShapeText} instead of [{string.Join(", ", block.GlobalShape)}] does not fit config.json; use weights and config.json of the same model.");
        if (destination.numel() != block.NumElements)
            throw new InvalidOperationException($"The block of {block.Name} has {block.NumElements} elements, its destination {destination.numel()}.");
        return (file, entry);
    }

    /// <summary>Cuts a block into pieces that several threads can read.</summary>
    private static unsafe void AddDirect(List<DirectRead> reads, SafetensorsFile file, SafetensorsEntry entry, TensorBlock block, Tensor values)
    {
        var piece = DirectPieceBytes / entry.DType.SizeBytes();
        for (var begin = 0L; begin < block.NumElements; begin += piece)
        {
            var wanted = new BlockRange(block.Offset, block.Shape, begin, Math.Min(begin + piece, block.NumElements));
            reads.Add(new DirectRead(file, entry, wanted, (nint)(TensorBytes.Pointer(values) + begin * entry.DType.SizeBytes())));
        }
    }

    private SafetensorsFile FileOf(string name) => fileOf.TryGetValue(name, out var file)
        ? file
        : throw new ConfigException("MODEL001", $"{Folder}: tensor {Printable.Quote(name)} is missing; the folder is incomplete or belongs to another model.");

    private void AddFile(string fileName)
    {
        var file = SafetensorsFile.Open(Path.Combine(Folder, fileName));
        files.Add(file);
        foreach (var name in file.Tensors.Keys) fileOf.Add(name, file);
    }

    private void AddShards(IReadOnlyDictionary<string, string> map, string index)
    {
        var problems = new List<string>();
        foreach (var fileName in map.Values.Distinct(StringComparer.Ordinal).Order(StringComparer.Ordinal))
        {
            if (!File.Exists(Path.Combine(Folder, fileName)))
            {
                problems.Add($"the file {Printable.Quote(fileName)} is missing; download it");
                continue;
            }
            var file = SafetensorsFile.Open(Path.Combine(Folder, fileName));
            files.Add(file);
            foreach (var name in file.Tensors.Keys)
            {
                if (!fileOf.TryAdd(name, file)) problems.Add($"tensor {Printable.Quote(name)} is in two files, {Path.GetFileName(fileOf[name].Path)} and {fileName}; download the folder again");
                else if (!map.TryGetValue(name, out var listed)) problems.Add($"tensor {Printable.Quote(name)} of {fileName} is not listed; download the folder again");
                else if (listed != fileName) problems.Add($"tensor {Printable.Quote(name)} is listed in {listed} and lies in {fileName}; download the folder again");
            }
        }
        if (problems.Count == 0)
            problems.AddRange(map.Keys.Where(name => !Contains(name)).Select(name => $"tensor {Printable.Quote(name)} is listed but not in {map[name]}; download the folder again"));
        if (problems.Count > 0) throw new ConfigException([.. problems.Take(20).Select(problem => new ConfigError("ST025", $"{index}: {problem}."))]);
    }

    private static ConfigException NoWeights(string folder)
    {
        var pickle = Directory.EnumerateFiles(folder).Select(Path.GetFileName).Order(StringComparer.Ordinal)
            .FirstOrDefault(name => Path.GetExtension(name) is ".bin" or ".pt" or ".pth" or ".ckpt" or ".pkl");
        return pickle is not null
            ? new ConfigException("MODEL005", $"{folder} holds {pickle} but no safetensors: such files run code when opened and are never read; convert the model to safetensors elsewhere.")
            : new ConfigException("MODEL005", $"{folder} holds neither {HfShardPlan.SingleFileName} nor {HfShardPlan.IndexFileName}; name a Hugging Face model folder with safetensors weights.");
    }

    /// <summary>A piece of a block whose bytes go from the file to memory as they are.</summary>
    private sealed record DirectRead(SafetensorsFile File, SafetensorsEntry Entry, BlockRange Wanted, nint Destination)
    {
        public unsafe void Run() => BlockTransfer.Gather(
            BlockRange.WholeTensor(Entry.Shape).Intersect(Wanted), Entry.DType.SizeBytes(), (bytes, offset) => File.Read(Entry.Name, offset, bytes), (byte*)Destination);
    }
}
