using System.Globalization;
using System.Text.Json;

namespace Megatron.Compute.Configuration;

/// <summary>Text → option value, the same for the command line, configuration files and <c>args.json</c>. Culture plays no part.</summary>
public static class OptionValue
{
    /// <summary>Parses what stands after an option's name.</summary>
    /// <param name="option">The option.</param>
    /// <param name="words">The words; none means a bare flag.</param>
    /// <param name="value">bool, int, double, string or a list.</param>
    /// <param name="problem">CFG003 when false is returned.</param>
    public static bool TryParse(OptionInfo option, IReadOnlyList<string> words, out object? value, out ConfigError problem)
    {
        value = null;
        problem = new ConfigError("", "");
        var wrong = words.FirstOrDefault(word => option.Choices.Count > 0 && Choice(option, word) is null);
        if (wrong is not null)
        {
            problem = new ConfigError("CFG003", $"--{option.Name} = {wrong} is not known; choose {Alternatives(option.Choices)}.");
            return false;
        }

        value = option.Kind switch
        {
            OptionKind.Flag => words.Count == 0 ? true : words.Count == 1 ? Flag(words[0]) : null,
            OptionKind.Integer => words.Count == 1 ? Integer(words[0]) : null,
            OptionKind.Number => words.Count == 1 ? Number(words[0]) : null,
            OptionKind.Text => words.Count == 1 ? Choice(option, words[0]) : null,
            OptionKind.Json => words.Count == 1 ? Json(words[0]) : null,
            OptionKind.TextList => words.Select(word => Choice(option, word) ?? word).ToArray(),
            OptionKind.NumberList => Numbers(words),
            _ => throw new InvalidOperationException($"Kind {option.Kind} is not foreseen."),
        };
        if (value is null) problem = WrongType(option, words.Count == 0 ? "(nothing)" : string.Join(' ', words));
        return value is not null;
    }

    /// <summary>The error for a value that is not of the option's kind.</summary>
    public static ConfigError WrongType(OptionInfo option, string given) =>
        new("CFG003", $"--{option.Name} = {given} cannot be read; give {Expected(option)}.");

    /// <summary>"a, b or c".</summary>
    public static string Alternatives(IReadOnlyList<string> words) =>
        words.Count == 1 ? words[0] : string.Join(", ", words.Take(words.Count - 1)) + " or " + words[^1];

    private static string Expected(OptionInfo option) => option.Kind switch
    {
        OptionKind.Flag => "true or false",
        OptionKind.Integer => string.Create(CultureInfo.InvariantCulture, $"one whole number from {int.MinValue} to {int.MaxValue}"),
        OptionKind.Number => "one number such as 0.1 or 1e-5",
        OptionKind.Json => "a JSON object or list, or the path of a JSON file",
        OptionKind.NumberList => "numbers separated by spaces",
        _ => "one text",
    };

    private static object? Flag(string word) => word.ToLowerInvariant() switch
    {
        "true" or "yes" or "1" or "y" or "t" => true,
        "false" or "no" or "0" or "n" or "f" => false,
        _ => null,
    };

    private static object? Integer(string word) =>
        int.TryParse(word, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out var number) ? number : null;

    private static object? Number(string word) =>
        double.TryParse(word, NumberStyles.Float, CultureInfo.InvariantCulture, out var number) ? number : null;

    private static double[]? Numbers(IReadOnlyList<string> words)
    {
        var numbers = words.Select(Number).ToArray();
        return numbers.Any(number => number is null) ? null : [.. numbers.Cast<double>()];
    }

    private static string? Choice(OptionInfo option, string word) => option.Choices.Count == 0
        ? word
        : option.Choices.FirstOrDefault(choice => string.Equals(choice, word, StringComparison.OrdinalIgnoreCase));

    private static string? Json(string text)
    {
        try
        {
            using var document = JsonDocument.Parse(text);
            var root = document.RootElement;
            return root.ValueKind is JsonValueKind.Object or JsonValueKind.Array ? JsonSerializer.Serialize(root, ConfigJson.Compact) : null;
        }
        catch (JsonException)
        {
            return null; // the caller reports the option, its value and what is expected
        }
    }
}
