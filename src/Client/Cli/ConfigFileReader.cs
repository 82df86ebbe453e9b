using System.Globalization;
using System.Text.Json;
using System.Text.Json.Nodes;
using Megatron.Compute.Configuration;
using YamlDotNet.Core;
using YamlDotNet.RepresentationModel;

namespace Megatron.Client.Cli;

/// <summary>
/// Reads a configuration file: a flat map of options in YAML (a list is several values, a map is JSON) or JSON. A map <c>ENV</c> holds
/// environment variables for those that are not set. Messages name the file and, for YAML, the line.
/// </summary>
public static class ConfigFileReader
{
    private const int DepthMax = 32;
    private const int NodesMax = 100_000;

    /// <summary>Adds what the file says to <paramref name="given"/>, mistakes included.</summary>
    public static void Read(string path, bool trainingVerb, GivenValues given, IDictionary<string, string> environment)
    {
        string text;
        try
        {
            text = File.ReadAllText(path);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            given.Errors.Add(new("CFG011", $"The configuration file {path} cannot be read ({exception.Message.TrimEnd('.')}); correct the path."));
            return;
        }

        try
        {
            if (Path.GetExtension(path) == ".json") ReadJson(path, text, trainingVerb, given);
            else ReadMap(path, Root(path, text), trainingVerb, given, environment);
        }
        catch (ConfigException exception)
        {
            given.Errors.AddRange(exception.Errors);
        }
        catch (YamlException exception)
        {
            given.Errors.Add(new("CFG002", $"{path} line {exception.Start.Line}: {exception.Message.TrimEnd('.')}; correct it there."));
        }
    }

    private static void ReadJson(string path, string text, bool trainingVerb, GivenValues given)
    {
        using var document = ConfigJson.ParseObject(text, path);
        foreach (var property in document.RootElement.EnumerateObject().Where(property => property.Value.ValueKind != JsonValueKind.Null))
        {
            ConfigError At(ConfigError error) => error with { Message = $"{path}: {error.Message}" };
            var option = OptionBinder.Resolve(property.Name, trainingVerb, out var negated);
            if (option is null) given.Errors.Add(At(ConfigJson.UnknownOption(property.Name)));
            else if (!ConfigJson.TryConvert(option, property.Value, out var value, out var problem)) given.Errors.Add(At(problem));
            else given.Set(option, negated ? value is false : value);
        }
    }

    private static YamlMappingNode Root(string path, string text)
    {
        var stream = new YamlStream();
        stream.Load(new StringReader(text));
        if (stream.Documents.Count == 0) return new YamlMappingNode();
        if (stream.Documents.Count > 1) throw new ConfigException("CFG002", $"{path} holds {stream.Documents.Count} documents; keep one.");
        return stream.Documents[0].RootNode as YamlMappingNode
            ?? throw new ConfigException("CFG002", $"{path} is no map of options; write lines such as \"lr: 1e-5\".");
    }

    private static void ReadMap(string path, YamlMappingNode map, bool trainingVerb, GivenValues given, IDictionary<string, string> environment)
    {
        foreach (var (keyNode, node) in map.Children)
        {
            var key = (keyNode as YamlScalarNode)?.Value ?? "";
            if (key == "ENV" && node is YamlMappingNode variables)
            {
                ReadEnvironment(path, variables, given, environment);
                continue;
            }

            ConfigError At(ConfigError error) => error with { Message = $"{path} line {keyNode.Start.Line}: {error.Message}" };
            var option = OptionBinder.Resolve(key, trainingVerb, out var negated);
            if (option is null) given.Errors.Add(At(ConfigJson.UnknownOption(key)));
            else if (IsNull(node)) continue; // "nothing said", as in an args.json
            else if (!TryValue(option, node, out var value, out var problem)) given.Errors.Add(At(problem));
            else given.Set(option, negated ? value is false : value);
        }
    }

    private static bool TryValue(OptionInfo option, YamlNode node, out object? value, out ConfigError problem)
    {
        if (option.Kind == OptionKind.Json && node is not YamlScalarNode)
        {
            var budget = NodesMax;
            var json = ToJson(node, 0, ref budget);
            value = null;
            problem = new("CFG003", $"--{option.Name} is nested more than {DepthMax} deep or has more than {NodesMax} parts; make it smaller.");
            return json is not null && OptionValue.TryParse(option, [json.ToJsonString()], out value, out problem);
        }

        var words = node switch
        {
            YamlScalarNode scalar => [scalar.Value ?? ""],
            YamlSequenceNode sequence when sequence.Children.All(child => child is YamlScalarNode) =>
                sequence.Children.Select(child => ((YamlScalarNode)child).Value ?? "").ToArray(),
            _ => null,
        };
        value = null;
        problem = OptionValue.WrongType(option, "a map or a list of lists");
        var isList = option.Kind is OptionKind.TextList or OptionKind.NumberList;
        return words is not null && (isList || words.Length == 1 ? OptionBinder.TryRead(option, words, out value, out problem) : Refuse(option, words, out problem));
    }

    private static bool Refuse(OptionInfo option, string[] words, out ConfigError problem)
    {
        problem = OptionValue.WrongType(option, $"[{string.Join(", ", words)}]");
        return false;
    }

    private static void ReadEnvironment(string path, YamlMappingNode variables, GivenValues given, IDictionary<string, string> environment)
    {
        foreach (var (keyNode, node) in variables.Children)
        {
            var name = (keyNode as YamlScalarNode)?.Value ?? "";
            if (LaunchEnvironment.Names.Contains(name) && node is YamlScalarNode { Value: { } value }) environment[name] = value;
            else given.Notices.Add($"{path} line {keyNode.Start.Line}: ENV.{name} has no effect; set it in the shell if a library needs it.");
        }
    }

    private static bool IsNull(YamlNode node) =>
        node is YamlScalarNode { Style: ScalarStyle.Plain, Value: null or "" or "~" or "null" or "Null" or "NULL" };

    /// <summary>YAML → JSON; null when it is too deep or too large (an alias may refer to its own parent).</summary>
    private static JsonNode? ToJson(YamlNode node, int depth, ref int budget)
    {
        if (depth > DepthMax || --budget < 0) return null;
        switch (node)
        {
            case YamlMappingNode map:
                var result = new JsonObject();
                foreach (var (key, child) in map.Children)
                {
                    var converted = IsNull(child) ? null : ToJson(child, depth + 1, ref budget);
                    if (converted is null && !IsNull(child)) return null;
                    result[(key as YamlScalarNode)?.Value ?? ""] = converted;
                }

                return result;
            case YamlSequenceNode sequence:
                var list = new JsonArray();
                foreach (var child in sequence.Children)
                {
                    var converted = IsNull(child) ? null : ToJson(child, depth + 1, ref budget);
                    if (converted is null && !IsNull(child)) return null;
                    list.Add(converted);
                }

                return list;
            default:
                return Scalar((YamlScalarNode)node);
        }
    }

    private static JsonNode Scalar(YamlScalarNode node)
    {
        var text = node.Value ?? "";
        if (node.Style != ScalarStyle.Plain) return JsonValue.Create(text);
        if (text is "true" or "True" or "TRUE") return JsonValue.Create(true);
        if (text is "false" or "False" or "FALSE") return JsonValue.Create(false);
        if (long.TryParse(text, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out var whole)) return JsonValue.Create(whole);
        if (double.TryParse(text, NumberStyles.Float, CultureInfo.InvariantCulture, out var number) && double.IsFinite(number)) return JsonValue.Create(number);
        return JsonValue.Create(text);
    }
}
