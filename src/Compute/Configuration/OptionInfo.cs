using System.Globalization;
using System.Reflection;

namespace Megatron.Compute.Configuration;

/// <summary>Kind of a value, as the help and the error messages call it.</summary>
public enum OptionKind
{
    Flag, Integer, Number, Text, Json, TextList, NumberList,
}

/// <summary>One option of <see cref="TrainingConfig"/>: what its attribute and its property say.</summary>
public sealed class OptionInfo
{
    private readonly PropertyInfo _property;

    internal OptionInfo(PropertyInfo property, OptionAttribute attribute)
    {
        _property = property;
        Name = attribute.Name;
        Help = attribute.Help;
        Section = attribute.Section;
        Effect = attribute.Effect;
        Aliases = Split(attribute.Aliases);
        TrainingAliases = Split(attribute.TrainingAliases);
        Choices = Split(attribute.Choices);
        DefaultFrom = attribute.DefaultFrom;
        var type = Nullable.GetUnderlyingType(property.PropertyType) ?? property.PropertyType;
        IsNullable = type != property.PropertyType
            || (type == typeof(string) && new NullabilityInfoContext().Create(property).ReadState == NullabilityState.Nullable);
        Kind = attribute.IsJson ? OptionKind.Json : KindOf(type);
        DeclarationOrder = property.MetadataToken;
    }

    /// <summary>snake_case name.</summary>
    public string Name { get; }

    /// <summary>Name of the property.</summary>
    public string PropertyName => _property.Name;

    /// <summary>Help sentence.</summary>
    public string Help { get; }

    /// <summary>Chapter.</summary>
    public OptionSection Section { get; }

    /// <summary>What an accepted value does.</summary>
    public OptionEffect Effect { get; }

    /// <summary>Other accepted names.</summary>
    public IReadOnlyList<string> Aliases { get; }

    /// <summary>Names that mean this option under the training verbs only.</summary>
    public IReadOnlyList<string> TrainingAliases { get; }

    /// <summary>Legal words; empty when any text is legal.</summary>
    public IReadOnlyList<string> Choices { get; }

    /// <summary>Where an empty default comes from, or "".</summary>
    public string DefaultFrom { get; }

    /// <summary>Kind of value.</summary>
    public OptionKind Kind { get; }

    /// <summary>True when the value may be absent.</summary>
    public bool IsNullable { get; }

    internal int DeclarationOrder { get; }

    /// <summary>The value in <paramref name="config"/>: bool, int, double, string, list of string, list of double, or null.</summary>
    public object? Get(TrainingConfig config) => _property.GetValue(config);

    /// <summary>The value of a configuration in which nothing was said.</summary>
    public object? Default => Get(OptionCatalog.Defaults);

    /// <summary>The value as one writes it on the command line; "" for null and for an empty list.</summary>
    public string Format(object? value) => value switch
    {
        null => "",
        bool flag => flag ? "true" : "false",
        IEnumerable<string> texts => string.Join(' ', texts),
        IEnumerable<double> numbers => string.Join(' ', numbers.Select(number => number.ToString("R", CultureInfo.InvariantCulture))),
        IFormattable number => number.ToString(null, CultureInfo.InvariantCulture),
        _ => value.ToString() ?? "",
    };

    /// <summary>Sets the value in place; only <see cref="OptionCatalog.With"/> may, on a copy that nobody else holds.</summary>
    internal void Set(TrainingConfig config, object? value) => _property.SetValue(config, value);

    private static IReadOnlyList<string> Split(string text) => text.Length == 0 ? [] : text.Split('|');

    private static OptionKind KindOf(Type type)
    {
        if (type == typeof(bool)) return OptionKind.Flag;
        if (type == typeof(int)) return OptionKind.Integer;
        if (type == typeof(double)) return OptionKind.Number;
        if (type == typeof(string)) return OptionKind.Text;
        if (type == typeof(IReadOnlyList<string>)) return OptionKind.TextList;
        if (type == typeof(IReadOnlyList<double>)) return OptionKind.NumberList;
        throw new InvalidOperationException($"An option of type {type} is not foreseen.");
    }
}
