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
    private readonly Dictionary<string, SafetensorsFile> stateFiles = new(StringComparer.Ordinal);
    private readonly Dictionary<(string Tensor, StateKind Kind), List<(string File, CheckpointSlice Slice)>> slices = [];

    /// <summary>The checkpoint folder.</summary>
    public string Folder { get; }

    /// <summary>Its manifest.</summary>
    public CheckpointManifest Manifest { get; }

    /// <summary>The weights in the dtype of the run that saved them.</summary>
    public HfWeightFolder Weights { get; }

    /// <summary>Opens a checkpoint that <see cref="CheckpointStore.FindNewestVerified"/> or <see cref="CheckpointLocator"/> found.</summary>
    /// <exception cref="ConfigException">A file is refused.</exception>
    public CheckpointReader(StoredCheckpoint checkpoint)
    {
        (Folder, Manifest) = (checkpoint.Folder, checkpoint.Manifest);
        Weights = HfWeightFolder.Open(Folder);
        foreach (var state in Manifest.State)
            foreach (var slice in state.Slices)
            {
                if (!slices.TryGetValue((slice.Tensor, slice.Kind), out var list)) slices[(slice.Tensor, slice.Kind)] = list = [];
                list.Add((state.File, slice));
            }
    }

    /// <summary>Fills weights of this rank from the whole tensors.</summary>
    /// <exception cref="ConfigException">MODEL001 a tensor is missing, MODEL003 its shape differs.</exception>
    public void LoadWeights(IReadOnlyList<WeightBlock> wanted)
    {
        foreach (var weight in wanted)
        {
            using var flat = weight.Values.view(-1);
            Weights.ReadBlock(weight.Block, flat);
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
        var errors = wanted.SelectMany(FindProblems).Take(20).ToList();
        if (errors.Count > 0) throw new ConfigException(errors);
        foreach (var slice in wanted) Load(slice);
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
        Weights.Dispose();
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
        var shape = Weights.Entry(wanted.Block.Name).Shape;
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

    private void Load(StateSlice wanted)
    {
        var isDirect = wanted.Values.device_type == DeviceType.CPU && wanted.Values.is_contiguous();
        using var staging = isDirect ? wanted.Values.alias() : empty(wanted.Values.shape, dtype: wanted.Values.dtype, device: CPU);
        var filled = Fill(wanted, staging);
        if (filled != wanted.End - wanted.Begin)
            throw new InvalidOperationException(string.Create(CultureInfo.InvariantCulture, $"{filled} of {wanted.End - wanted.Begin} elements of {wanted.Block.Name} ({wanted.Kind}) were found in {Folder}."));
        if (!isDirect) wanted.Values.copy_(staging);
    }

    private unsafe long Fill(StateSlice wanted, Tensor destination)
    {
        var pointer = TensorBytes.Pointer(destination);
        var elementBytes = (int)destination.element_size();
        var filled = 0L;
        foreach (var (fileName, slice) in slices[(wanted.Block.Name, wanted.Kind)])
        {
            var file = StateFile(fileName);
            filled += BlockTransfer.Gather(slice.Range.Intersect(wanted.Range), elementBytes, (bytes, offset) => file.Read(slice.Entry, offset, bytes), pointer);
        }
        return filled;
    }

    private SafetensorsFile StateFile(string name)
    {
        if (!stateFiles.TryGetValue(name, out var file)) stateFiles[name] = file = SafetensorsFile.Open(Path.Combine(Folder, name), strict: true);
        return file;
    }
}
