using System.Globalization;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Checkpointing;

/// <summary>A tensor that a model expects to find among its weights.</summary>
/// <param name="Name">Hugging Face name.</param>
/// <param name="Shape">Its whole shape.</param>
public sealed record ExpectedTensor(string Name, long[] Shape);

/// <summary>Compares weights with what a model expects.</summary>
public static class WeightCheck
{
    /// <summary>Reports every difference at once.</summary>
    /// <param name="weights">What is there.</param>
    /// <param name="expected">All tensors of the model.</param>
    /// <param name="optional">Names that may be absent or present: <c>lm_head.weight</c> of a model with tied embeddings, stored rotary tables.</param>
    /// <exception cref="ConfigException">
    /// MODEL001 missing, MODEL002 unexpected, MODEL003 wrong shape, MODEL004 not a floating-point type; the first 20 of each kind and their number.
    /// </exception>
    public static void Run(IWeightSource weights, IReadOnlyList<ExpectedTensor> expected, IReadOnlySet<string> optional)
    {
        var known = expected.ToDictionary(tensor => tensor.Name, StringComparer.Ordinal);
        var (errors, folder) = (new List<ConfigError>(), weights.Folder);
        var pairs = expected.Select(tensor => (Expected: tensor, Found: weights.Find(tensor.Name))).ToList();
        AddErrors(errors, folder, "MODEL001", "is missing; the folder is incomplete or belongs to another model",
            [.. pairs.Where(pair => pair.Found is null && !optional.Contains(pair.Expected.Name)).Select(pair => Printable.Quote(pair.Expected.Name))]);
        AddErrors(errors, folder, "MODEL002", "is not part of the model that config.json describes; use the folder with its own config.json",
            [.. weights.Names.Where(name => !known.ContainsKey(name) && !optional.Contains(name)).Order(StringComparer.Ordinal).Select(Printable.Quote)]);
        AddErrors(errors, folder, "MODEL003", "does not fit config.json; use weights and config.json of the same model",
            [.. pairs.Where(pair => pair.Found is { } found && !found.Shape.AsSpan().SequenceEqual(pair.Expected.Shape))
                .Select(pair => $"{Printable.Quote(pair.Expected.Name)} with shape [{string.Join(", ", pair.Found?.Shape ?? [])}] instead of [{string.Join(", ", pair.Expected.Shape)}]")]);
        AddErrors(errors, folder, "MODEL004", "cannot be loaded as a weight; convert the folder to BF16, F16 or F32",
            [.. pairs.Where(pair => pair.Found is { DType: not (SafetensorsDType.BF16 or SafetensorsDType.F16 or SafetensorsDType.F32 or SafetensorsDType.F64) })
                .Select(pair => $"{Printable.Quote(pair.Expected.Name)} of dtype {pair.Found?.DType}")]);
        if (errors.Count > 0) throw new ConfigException(errors);
    }

    private static void AddErrors(List<ConfigError> errors, string folder, string code, string what, IReadOnlyList<string> subjects)
    {
        const int shown = 20;
        foreach (var subject in subjects.Take(shown)) errors.Add(new ConfigError(code, $"{folder}: tensor {subject} {what}."));
        if (subjects.Count > shown)
            errors.Add(new ConfigError(code, string.Create(CultureInfo.InvariantCulture, $"{folder}: {subjects.Count - shown} more tensors like these ({subjects.Count} in total).")));
    }
}
