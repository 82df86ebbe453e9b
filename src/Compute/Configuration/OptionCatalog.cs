using System.Reflection;

namespace Megatron.Compute.Configuration;

/// <summary>All options, read once from the annotations of <see cref="TrainingConfig"/>, in declared order.</summary>
public static class OptionCatalog
{
    /// <summary>A configuration in which nothing was said.</summary>
    public static TrainingConfig Defaults { get; } = new();

    /// <summary>The options by section, then as declared.</summary>
    public static IReadOnlyList<OptionInfo> All { get; } = ReadAll();

    private static readonly Dictionary<string, OptionInfo> ByName = All.ToDictionary(option => option.Name, StringComparer.Ordinal);

    private static readonly Dictionary<string, OptionInfo> ByAnyName = All
        .SelectMany(option => option.Aliases.Append(option.Name).Select(name => (name, option)))
        .ToDictionary(pair => pair.name, pair => pair.option, StringComparer.Ordinal);

    private static readonly Dictionary<string, OptionInfo> ByTrainingAlias = All
        .SelectMany(option => option.TrainingAliases.Select(name => (name, option)))
        .ToDictionary(pair => pair.name, pair => pair.option, StringComparer.Ordinal);

    /// <summary>The option with this canonical name.</summary>
    /// <exception cref="KeyNotFoundException">There is none.</exception>
    public static OptionInfo Get(string name) => ByName[name];

    /// <summary>
    /// The option that <paramref name="name"/> (snake_case or dashed, canonical or alias) means; null when there is none.
    /// Under the training verbs <c>output_dir</c> is <c>save</c> and <c>mcore_model</c> is <c>load</c>.
    /// </summary>
    public static OptionInfo? Find(string name, bool trainingVerb)
    {
        var snake = name.Replace('-', '_');
        if (trainingVerb && ByTrainingAlias.TryGetValue(snake, out var training)) return training;
        return ByAnyName.GetValueOrDefault(snake);
    }

    /// <summary>
    /// A copy of <paramref name="config"/> with the given values (bool, int, double, string, list, or null) by canonical name.
    /// </summary>
    public static TrainingConfig With(TrainingConfig config, IReadOnlyDictionary<string, object?> values)
    {
        var copy = config with { };
        foreach (var (name, value) in values) ByName[name].Set(copy, value);
        return copy;
    }

    /// <summary>The known name nearest to a misspelt one, or null when none is near.</summary>
    public static string? Suggest(string name) => Spelling.Nearest(name.Replace('-', '_'), ByAnyName.Keys);

    private static OptionInfo[] ReadAll() =>
        [.. typeof(TrainingConfig).GetProperties(BindingFlags.Public | BindingFlags.Instance)
            .Select(property => (property, attribute: property.GetCustomAttribute<OptionAttribute>()))
            .Where(pair => pair.attribute is not null)
            .Select(pair => new OptionInfo(pair.property, pair.attribute!)) // filtered on the line above
            .OrderBy(option => option.Section).ThenBy(option => option.DeclarationOrder)];
}
