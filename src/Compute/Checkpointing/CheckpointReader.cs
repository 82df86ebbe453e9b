using System.Globalization;
using Megatron.Compute.Configuration;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Checkpointing;

/// <summary>
/// Loads a verified checkpoint into any layout: what a rank wants is matched with what ranks wrote by intersecting flat ranges of blocks, so
/// each rank reads only its own elements (DESIGN D11).
/// </summary>
public sealed class CheckpointReader : IDisposable
{
    private const int ThreadsMax = 4;

    private readonly HfWeightFolder? weights;
    private readonly Dictionary<string, long[]> shapes;
    private readonly Dictionary<string, SafetensorsFile> stateFiles = new(StringComparer.Ordinal);
    private readonly Dictionary<(string Tensor, StateKind Kind), List<(string File, CheckpointSlice Slice)>> slices = [];

    /// <summary>The checkpoint folder.</summary>
    public string Folder { get; }

    /// <summary>Its manifest.</summary>
    public CheckpointManifest Manifest { get; }

    /// <summary>Opens a checkpoint that <see cref="CheckpointStore.FindNewestVerified"/> or <see cref="CheckpointLocator"/> found.</summary>
    /// <exception cref="ConfigException">A file is refused.</exception>
    public CheckpointReader(StoredCheckpoint checkpoint)
    {
        (Folder, Manifest) = (checkpoint.Folder, checkpoint.Manifest);
        shapes = Manifest.Tensors.ToDictionary(tensor => tensor.Name, tensor => tensor.Shape, StringComparer.Ordinal);
        weights = Manifest.HasWeightFiles() ? HfWeightFolder.Open(Folder) : null;
        foreach (var state in Manifest.State)
            foreach (var slice in state.Slices)
            {
                if (!slices.TryGetValue((slice.Tensor, slice.Kind), out var list)) slices[(slice.Tensor, slice.Kind)] = list = [];
                list.Add((state.File, slice));
            }
    }

    /// <summary>
    /// Fills weights of this rank: from the whole tensors, or, after <c>--save_safetensors false</c>, from the fp32 masters, cast.
    /// </summary>
    /// <exception cref="ConfigException">MODEL001 a tensor is missing, MODEL003 its shape differs; CKPT031 likewise for masters.</exception>
    public void LoadWeights(IReadOnlyList<WeightBlock> wanted)
    {
        if (weights is not null)
        {
            weights.ReadBlocks(wanted);
            return;
        }
        foreach (var weight in wanted)
        {
            using var master = empty(weight.Block.NumElements, dtype: float32, device: CPU);
            LoadState([new StateSlice(weight.Block, StateKind.Master, 0, weight.Block.NumElements, master)]);
            using var shaped = master.view(weight.Values.shape);
            weight.Values.copy_(shaped);
        }
    }

    /// <summary>Fills slices of this rank's training state; every element comes from exactly one saved slice, with its bits.</summary>
    /// <exception cref="ConfigException">
    /// CKPT030 the checkpoint has weights only; CKPT031 state is missing (another optimizer or model) or has another shape; CKPT032 another
    /// dtype. All problems are listed before anything is read.
    /// </exception>
    public void LoadState(IReadOnlyList<StateSlice> wanted)
    {
        if (wanted.Count > 0 && !Manifest.HasOptimizerState())
            throw new ConfigException("CKPT030", $"{Folder} holds weights only, no optimizer state; give --finetune true or --no_load_optim true.");
        // This opens every file that is needed; from then on they are only read, by several threads.
        var errors = wanted.SelectMany(FindProblems).Take(20).ToList();
        if (errors.Count > 0) throw new ConfigException(errors);
        var direct = wanted.Where(IsDirect).OrderByDescending(slice => slice.End - slice.Begin).Select(slice => (Slice: slice, Destination: Address(slice.Values))).ToList();
        FileThreads.ForEach(direct, ThreadsMax, direct.Sum(item => (item.Slice.End - item.Slice.Begin) * item.Slice.Values.element_size()), item => Fill(item.Slice, item.Destination));
        foreach (var slice in wanted)
            if (!IsDirect(slice)) LoadStaged(slice);
    }

    /// <summary>Compares the model of the checkpoint with that of this run.</summary>
    /// <exception cref="ConfigException">CKPT040: every setting that differs.</exception>
    public void CheckModel(IReadOnlyDictionary<string, string> modelConfig)
    {
        var errors = ConfigFacts.Differences(Manifest.Run.ModelConfig, modelConfig, "model");
        if (errors.Count > 0) throw new ConfigException(errors);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        weights?.Dispose();
        foreach (var file in stateFiles.Values) file.Dispose();
    }

    private IEnumerable<ConfigError> FindProblems(StateSlice wanted)
    {
        var name = Printable.Quote(wanted.Block.Name);
        if (!slices.TryGetValue((wanted.Block.Name, wanted.Kind), out var saved))
        {
            yield return new ConfigError("CKPT031", $"{Folder} has no {wanted.Kind} state of tensor {name}; use the optimizer and model of the checkpoint, or give --no_load_optim true.");
            yield break;
        }
        var shape = shapes[wanted.Block.Name];
        if (!shape.AsSpan().SequenceEqual(wanted.Block.GlobalShape))
            yield return new ConfigError("CKPT031", $"{Folder}: tensor {name} has shape [{string.Join(", ", shape)}] instead of [{string.Join(", ", wanted.Block.GlobalShape)}]; use the model of the checkpoint.");
        var dtype = TensorBytes.ToSafetensors(wanted.Values.dtype);
        foreach (var (file, slice) in saved)
        {
            var found = StateFile(file).Entry(slice.Entry).DType;
            if (found != dtype)
                yield return new ConfigError("CKPT032", $"{Folder}: {wanted.Kind} state of tensor {name} was saved as {found}, this run holds it as {dtype}; use the precision settings of the checkpoint.");
        }
    }

    private static bool IsDirect(StateSlice slice) => slice.Values.device_type == DeviceType.CPU && slice.Values.is_contiguous();

    private static unsafe nint Address(Tensor values) => (nint)TensorBytes.Pointer(values);

    private void LoadStaged(StateSlice wanted)
    {
        using var staging = empty(wanted.Values.shape, dtype: wanted.Values.dtype, device: CPU);
        Fill(wanted, Address(staging));
        wanted.Values.copy_(staging);
    }

    private unsafe void Fill(StateSlice wanted, nint destination)
    {
        // FindProblems made sure that all saved slices have the dtype that is wanted.
        var filled = 0L;
        foreach (var (fileName, slice) in slices[(wanted.Block.Name, wanted.Kind)])
        {
            var file = stateFiles[fileName];
            filled += BlockTransfer.Gather(
                slice.Range.Intersect(wanted.Range), file.Entry(slice.Entry).DType.SizeBytes(), (bytes, offset) => file.Read(slice.Entry, offset, bytes), (byte*)destination);
        }
        if (filled != wanted.End - wanted.Begin)
            throw new InvalidOperationException(string.Create(CultureInfo.InvariantCulture, $"{filled} of {wanted.End - wanted.Begin} elements of {wanted.Block.Name} ({wanted.Kind}) were found in {Folder}."));
    }

    private SafetensorsFile StateFile(string name)
    {
        if (!stateFiles.TryGetValue(name, out var file)) stateFiles[name] = file = SafetensorsFile.Open(Path.Combine(Folder, name), strict: true);
        return file;
    }
}
