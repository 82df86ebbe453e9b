using Megatron.Compute.Configuration;

namespace Megatron.Compute.Checkpointing;

/// <summary>Checks the content of a parsed manifest, so that everything behind it may trust names, sizes and slices.</summary>
internal static class ManifestCheck
{
    private const int ErrorsMax = 20;

    /// <summary>Throws when anything in the manifest cannot be.</summary>
    /// <exception cref="ConfigException">CKPT012, CKPT013; up to 20 at once.</exception>
    public static void Run(CheckpointManifest manifest, string source)
    {
        if (HasNulls(manifest)) throw new ConfigException("CKPT012", $"{source} holds a null where a value belongs; the file is damaged.");
        var errors = new List<ConfigError>();
        CheckRun(manifest, source, errors);
        CheckFiles(manifest, source, errors);
        CheckTensors(manifest, source, errors);
        if (errors.Count == 0) CheckSlices(manifest, source, errors);
        if (errors.Count > 0) throw new ConfigException([.. errors.Take(ErrorsMax)]);
    }

    /// <summary>A file name inside a checkpoint: plain, or one in the folder <c>state</c>.</summary>
    public static bool IsSafeName(string name)
    {
        var plain = name.StartsWith("state/", StringComparison.Ordinal) ? name.AsSpan(6) : name.AsSpan();
        return plain.Length is > 0 and <= 255 && plain[0] != '.' && !plain.ContainsAny('/', '\\') && !plain.ContainsAnyInRange('\0', '\u001f');
    }

    // The serializer checks properties for null, but not the elements of lists and dictionaries.
    private static bool HasNulls(CheckpointManifest manifest) =>
        manifest.Files.Any(file => file is null) || manifest.Tensors.Any(tensor => tensor is null)
        || manifest.State.Any(file => file is null || file.Slices.Any(slice => slice is null))
        || new[] { manifest.Run.ModelConfig, manifest.Run.Optimizer, manifest.Run.Schedule }.Any(facts => facts.Values.Any(value => value is null));

    private static void CheckRun(CheckpointManifest manifest, string source, List<ConfigError> errors)
    {
        var trainer = manifest.Run.Trainer;
        foreach (var (name, value) in new[]
        {
            ("iteration", trainer.Iteration), ("consumedSamples", trainer.ConsumedSamples), ("optimizerSteps", trainer.OptimizerSteps),
            ("skippedIterations", trainer.SkippedIterations), ("nanIterations", trainer.NanIterations), ("data.nextBatch", trainer.Data.NextBatch),
            ("attempt", manifest.Run.Attempt),
        })
            if (value < 0) errors.Add(new ConfigError("CKPT012", $"{source}: {name} = {value} is negative; the file is damaged."));
        if (manifest.ModelConfigHash != ConfigFacts.Hash(manifest.Run.ModelConfig))
            errors.Add(new ConfigError("CKPT012", $"{source}: modelConfigHash = {Printable.Quote(manifest.ModelConfigHash)} is not that of modelConfig; the file is damaged."));
    }

    private static void CheckFiles(CheckpointManifest manifest, string source, List<ConfigError> errors)
    {
        var names = new HashSet<string>(StringComparer.Ordinal);
        foreach (var file in manifest.Files)
        {
            if (!IsSafeName(file.Name) || file.Name == CheckpointManifest.FileName)
                errors.Add(new ConfigError("CKPT012", $"{source}: the file name {Printable.Quote(file.Name)} is not allowed; the file is damaged."));
            else if (!names.Add(file.Name)) errors.Add(new ConfigError("CKPT012", $"{source}: the file {Printable.Quote(file.Name)} is listed twice; the file is damaged."));
            if (file.SizeBytes < 0 || file.XxHash128.Length != 32 || !file.XxHash128.All(char.IsAsciiHexDigitLower))
                errors.Add(new ConfigError("CKPT012", $"{source}: length or hash of {Printable.Quote(file.Name)} cannot be; the file is damaged."));
        }
        foreach (var name in manifest.Tensors.Select(tensor => tensor.File).OfType<string>().Concat(manifest.State.Select(state => state.File)).Distinct(StringComparer.Ordinal))
            if (!names.Contains(name)) errors.Add(new ConfigError("CKPT012", $"{source}: {Printable.Quote(name)} holds tensors but is not among the files; the file is damaged."));
    }

    private static void CheckTensors(CheckpointManifest manifest, string source, List<ConfigError> errors)
    {
        var names = new HashSet<string>(StringComparer.Ordinal);
        if (manifest.Tensors.Any(tensor => tensor.File is null) && (manifest.Tensors.Any(tensor => tensor.File is not null) || !manifest.HasOptimizerState()))
            errors.Add(new ConfigError("CKPT012", $"{source}: some tensors lie in no file; the file is damaged."));
        foreach (var tensor in manifest.Tensors)
        {
            if (!names.Add(tensor.Name)) errors.Add(new ConfigError("CKPT012", $"{source}: tensor {Printable.Quote(tensor.Name)} is listed twice; the file is damaged."));
            if (!IsShape(tensor.Shape)) errors.Add(new ConfigError("CKPT012", $"{source}: the shape of tensor {Printable.Quote(tensor.Name)} cannot be; the file is damaged."));
        }
        var files = new HashSet<string>(StringComparer.Ordinal);
        foreach (var state in manifest.State)
        {
            if (!files.Add(state.File)) errors.Add(new ConfigError("CKPT012", $"{source}: the slices of {Printable.Quote(state.File)} are listed twice; the file is damaged."));
            var entries = new HashSet<string>(StringComparer.Ordinal);
            foreach (var slice in state.Slices)
                if (!entries.Add(slice.Entry)) errors.Add(new ConfigError("CKPT012", $"{source}: {Printable.Quote(slice.Entry)} of {state.File} is listed twice; the file is damaged."));
        }
    }

    private static void CheckSlices(CheckpointManifest manifest, string source, List<ConfigError> errors)
    {
        var shapes = manifest.Tensors.ToDictionary(tensor => tensor.Name, tensor => tensor.Shape, StringComparer.Ordinal);
        var groups = new Dictionary<(string Tensor, StateKind Kind), List<BlockRange>>();
        foreach (var slice in manifest.State.SelectMany(state => state.Slices))
        {
            if (!shapes.TryGetValue(slice.Tensor, out var shape) || !IsInside(slice, shape))
            {
                errors.Add(new ConfigError("CKPT013", $"{source}: slice {Printable.Quote(slice.Entry)} lies outside its tensor; the file is damaged."));
                continue;
            }
            if (!groups.TryGetValue((slice.Tensor, slice.Kind), out var group)) groups[(slice.Tensor, slice.Kind)] = group = [];
            group.Add(slice.Range);
        }
        var kinds = groups.Keys.Select(key => key.Kind).Distinct().Order().ToList();
        if (!manifest.HasWeightFiles() && manifest.Tensors.Count > 0 && !kinds.Contains(StateKind.Master)) kinds.Add(StateKind.Master);
        foreach (var tensor in manifest.Tensors)
            foreach (var kind in kinds)
                if (SliceCover.Problem(tensor.Shape, groups.GetValueOrDefault((tensor.Name, kind)) ?? []) is { } problem)
                    errors.Add(new ConfigError("CKPT013", $"{source}: the {kind} slices of tensor {Printable.Quote(tensor.Name)} do not cover it exactly once: {problem}; the checkpoint is incomplete."));
    }

    private static bool IsInside(CheckpointSlice slice, long[] shape)
    {
        if (slice.Offset.Length != shape.Length || slice.Shape.Length != shape.Length) return false;
        for (var i = 0; i < shape.Length; i++)
            if (slice.Offset[i] < 0 || slice.Shape[i] < 0 || slice.Offset[i] > shape[i] || slice.Shape[i] > shape[i] - slice.Offset[i]) return false;
        return slice.Begin >= 0 && slice.Begin <= slice.End && slice.End <= slice.Shape.Aggregate(1L, (product, extent) => product * extent);
    }

    private static bool IsShape(long[] shape)
    {
        UInt128 count = 1;
        foreach (var extent in shape)
        {
            if (extent is < 0 or > 1L << 48) return false;
            count *= (ulong)extent;
            if (count > 1UL << 60) return false;
        }
        return true;
    }
}
