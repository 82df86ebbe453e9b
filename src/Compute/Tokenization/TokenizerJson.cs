using System.Text;
using System.Text.Json;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Tokenization;

/// <summary>
/// Everything of a tokenizer.json that decides ids, read and checked. Parts that would change the ids and are not supported are refused by
/// name
/// (TOK007); <c>truncation</c>, <c>padding</c> and offsets are ignored, as Hugging Face's callers override them.
/// </summary>
internal sealed record TokenizerJson
{
    /// <summary>Model vocabulary without added tokens.</summary>
    public required Dictionary<string, int> Vocabulary { get; init; }

    /// <summary>Merges by pair of ids.</summary>
    public required MergeTable Merges { get; init; }

    public required bool IgnoreMerges { get; init; }

    /// <summary>Token for what the vocabulary cannot write; null drops it.</summary>
    public required string? UnknownToken { get; init; }

    public required IReadOnlyList<AddedToken> AddedTokens { get; init; }

    public required IReadOnlyList<NormalizationForm> Normalization { get; init; }

    public required PreTokenizer PreTokenizer { get; init; }

    /// <summary>Ids that the post-processor puts in front of a text.</summary>
    public required IReadOnlyList<int> FrontIds { get; init; }

    public static TokenizerJson Parse(JsonElement root)
    {
        var model = root.GetProperty("model");
        CheckModel(model);
        var vocabulary = ParseVocabulary(model.GetProperty("vocab"));
        CheckDecoder(Part(root, "decoder"));
        return new TokenizerJson
        {
            Vocabulary = vocabulary,
            Merges = ParseMerges(model.GetProperty("merges"), vocabulary),
            IgnoreMerges = Flag(model, "ignore_merges"),
            UnknownToken = Text(model, "unk_token"),
            AddedTokens = Part(root, "added_tokens") is { } added
                ? [.. added.EnumerateArray().Select(token => ParseAddedToken(token, token.GetProperty("id").GetInt32()))]
                : [],
            Normalization = ParseNormalizer(Part(root, "normalizer")),
            PreTokenizer = ParsePreTokenizer(Part(root, "pre_tokenizer")),
            FrontIds = ParsePostProcessor(Part(root, "post_processor")),
        };
    }

    /// <summary>One entry of <c>added_tokens</c> or of <c>added_tokens_decoder</c>.</summary>
    public static AddedToken ParseAddedToken(JsonElement token, int id)
    {
        var isSpecial = Flag(token, "special");
        return new AddedToken(
            id,
            Text(token, "content") ?? throw new FormatException("an added token has no content"),
            isSpecial,
            token.TryGetProperty("normalized", out var normalized) ? normalized.GetBoolean() : !isSpecial,
            Flag(token, "lstrip"),
            Flag(token, "rstrip"),
            Flag(token, "single_word"));
    }

    private static void CheckModel(JsonElement model)
    {
        var type = Text(model, "type") ?? (model.TryGetProperty("merges", out _) ? "BPE" : "unknown");
        if (type != "BPE")
            throw Unsupported("model.type", type, "only byte-level BPE is supported");
        foreach (var name in (string[])["continuing_subword_prefix", "end_of_word_suffix"])
        {
            if (Text(model, name) is { Length: > 0 } text)
                throw Unsupported("model." + name, text, "only byte-level BPE without prefixes is supported");
        }

        if (Flag(model, "byte_fallback"))
            throw Unsupported("model.byte_fallback", "true", "only byte-level BPE is supported");
        if (Part(model, "dropout") is { } dropout && dropout.GetDouble() != 0)
            throw Unsupported("model.dropout", dropout.GetRawText(), "ids would be random; set it to null");
    }

    private static Dictionary<string, int> ParseVocabulary(JsonElement json)
    {
        var vocabulary = new Dictionary<string, int>(1 << 17, StringComparer.Ordinal);
        var owners = new Dictionary<int, string>(1 << 17);
        foreach (var entry in json.EnumerateObject())
        {
            var id = entry.Value.GetInt32();
            if (!vocabulary.TryAdd(entry.Name, id))
                throw new ConfigException("TOK004", $"Token '{entry.Name}' stands twice in the vocabulary of tokenizer.json; keep one.");
            if (!owners.TryAdd(id, entry.Name))
                throw new ConfigException("TOK004",
                    $"Tokens '{owners[id]}' and '{entry.Name}' of tokenizer.json have the same id {id}; ids must be unique.");
        }

        return vocabulary;
    }

    /// <summary>Both spellings of a merge: "a b" and ["a", "b"].</summary>
    private static MergeTable ParseMerges(JsonElement json, Dictionary<string, int> vocabulary)
    {
        var merges = new MergeTable(json.GetArrayLength());
        var rank = 0;
        foreach (var entry in json.EnumerateArray())
        {
            string[] pair = entry.ValueKind == JsonValueKind.Array
                ? [.. entry.EnumerateArray().Select(part => part.GetString() ?? "")]
                : (entry.GetString() ?? "").Split(' ');
            if (pair.Length != 2)
                throw new ConfigException("TOK003",
                    $"Merge {rank} of tokenizer.json, {entry.GetRawText()}, is not a pair of two tokens; the file is damaged.");
            if (!vocabulary.TryGetValue(pair[0], out var left) || !vocabulary.TryGetValue(pair[1], out var right)
                || !vocabulary.TryGetValue(pair[0] + pair[1], out var merged))
            {
                var missing = new[] { pair[0], pair[1], pair[0] + pair[1] }.First(token => !vocabulary.ContainsKey(token));
                throw new ConfigException("TOK003",
                    $"Merge {rank} of tokenizer.json, {entry.GetRawText()}, needs token '{missing}', which is not in the vocabulary; "
                    + "vocabulary and merges are not of the same tokenizer.");
            }

            merges[left, right] = new Merge(rank++, merged);
        }

        return merges;
    }

    private static List<NormalizationForm> ParseNormalizer(JsonElement? json)
    {
        var forms = new List<NormalizationForm>();
        foreach (var part in Flatten(json, "normalizers"))
        {
            forms.Add(TypeOf(part) switch
            {
                "NFC" => NormalizationForm.FormC,
                "NFD" => NormalizationForm.FormD,
                "NFKC" => NormalizationForm.FormKC,
                "NFKD" => NormalizationForm.FormKD,
                var type => throw Unsupported("normalizer", type, "only NFC, NFD, NFKC, NFKD and their sequences are"),
            });
        }

        return forms;
    }

    private static PreTokenizer ParsePreTokenizer(JsonElement? json)
    {
        var steps = new List<SplitStep>();
        PreTokenizer? result = null;
        foreach (var part in Flatten(json, "pretokenizers"))
        {
            var type = TypeOf(part);
            if (result is not null)
                throw Unsupported("pre_tokenizer", type + " after ByteLevel", "ByteLevel must be the last step");
            switch (type)
            {
                case "Split":
                    steps.Add(ParseSplit(part));
                    break;
                case "Digits":
                    var behavior = Flag(part, "individual_digits") ? SplitBehavior.Isolated : SplitBehavior.Contiguous;
                    steps.Add(new SplitStep(PreTokenizer.Compile(@"\p{N}"), behavior, false));
                    break;
                case "ByteLevel":
                    var usesRegex = !part.TryGetProperty("use_regex", out var flag) || flag.GetBoolean();
                    result = new PreTokenizer(steps, Flag(part, "add_prefix_space"), usesRegex ? PreTokenizer.ByteLevelStep() : null);
                    break;
                default:
                    throw Unsupported("pre_tokenizer", type, "only Split, Digits, ByteLevel and their sequences are");
            }
        }

        return result ?? throw Unsupported("pre_tokenizer", "none of type ByteLevel", "only byte-level BPE is supported");
    }

    private static SplitStep ParseSplit(JsonElement part)
    {
        var pattern = part.GetProperty("pattern");
        var regex = Text(pattern, "Regex")
            ?? System.Text.RegularExpressions.Regex.Escape(Text(pattern, "String") ?? throw new FormatException("a Split has no pattern"));
        var name = Text(part, "behavior");
        return Enum.TryParse<SplitBehavior>(name, out var behavior)
            ? new SplitStep(PreTokenizer.Compile(regex), behavior, Flag(part, "invert"))
            : throw Unsupported("pre_tokenizer Split behavior", name ?? "null",
                $"only {string.Join(", ", Enum.GetNames<SplitBehavior>())} are");
    }

    private static List<int> ParsePostProcessor(JsonElement? json)
    {
        var front = new List<int>();
        foreach (var part in Flatten(json, "processors"))
        {
            var type = TypeOf(part);
            if (type == "ByteLevel")
                continue;
            if (type != "TemplateProcessing")
                throw Unsupported("post_processor", type, "only TemplateProcessing, ByteLevel and their sequences are");
            foreach (var item in part.GetProperty("single").EnumerateArray().TakeWhile(item => item.TryGetProperty("SpecialToken", out _)))
            {
                var name = item.GetProperty("SpecialToken").GetProperty("id").GetString() ?? "";
                var ids = part.GetProperty("special_tokens").GetProperty(name).GetProperty("ids");
                front.AddRange(ids.EnumerateArray().Select(id => id.GetInt32()));
            }
        }

        return front;
    }

    private static void CheckDecoder(JsonElement? json)
    {
        var types = Flatten(json, "decoders").Select(TypeOf).ToList();
        if (types.Find(type => type is not ("ByteLevel" or "Fuse")) is string type)
            throw Unsupported("decoder", type, "only ByteLevel is");
        if (!types.Contains("ByteLevel"))
            throw Unsupported("decoder", "none of type ByteLevel", "only byte-level BPE is supported");
    }

    /// <summary>The parts of a component: of a sequence its members, else itself; none when absent.</summary>
    private static IEnumerable<JsonElement> Flatten(JsonElement? json, string members)
    {
        if (json is not { } part)
            return [];
        return TypeOf(part) == "Sequence"
            ? part.GetProperty(members).EnumerateArray().SelectMany(member => Flatten(member, members))
            : [part];
    }

    private static string TypeOf(JsonElement part) => part.GetProperty("type").GetString() ?? "null";

    private static JsonElement? Part(JsonElement json, string name) =>
        json.TryGetProperty(name, out var part) && part.ValueKind != JsonValueKind.Null ? part : null;

    private static string? Text(JsonElement json, string name) => Part(json, name)?.GetString();

    private static bool Flag(JsonElement json, string name) => Part(json, name)?.GetBoolean() ?? false;

    internal static ConfigException Unsupported(string where, string what, string remedy) =>
        new("TOK007", $"tokenizer.json uses {where} = '{what}', which is not supported: {remedy}.");
}
