using System.Text;
using System.Text.Json.Nodes;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Tests.Tokenization;

/// <summary>
/// A throw-away tokenizer folder whose tokenizer.json tests bend: all 256 bytes, the merges "h e", "l l", "he ll", "Ġ hell", one special
/// token.
/// </summary>
internal sealed class TokenizerFolder : IDisposable
{
    public TokenizerFolder()
    {
        Directory.CreateDirectory(Folder);
        var vocabulary = new JsonObject();
        foreach (var letter in ByteLetters().Concat(["he", "ll", "hell", "Ġhell"]))
            vocabulary[letter] = vocabulary.Count;
        Json = new JsonObject
        {
            ["added_tokens"] = new JsonArray(Added(vocabulary.Count, "<eos>")),
            ["normalizer"] = null,
            ["pre_tokenizer"] = JsonNode.Parse("""{"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}"""),
            ["post_processor"] = null,
            ["decoder"] = JsonNode.Parse("""{"type": "ByteLevel"}"""),
            ["model"] = new JsonObject
            {
                ["type"] = "BPE",
                ["vocab"] = vocabulary,
                ["merges"] = JsonNode.Parse("""["h e", "l l", "he ll", "Ġ hell"]"""),
            },
        };
    }

    public string Folder { get; } = Directory.CreateTempSubdirectory("tokenizer-").FullName;

    /// <summary>The tokenizer.json to be written.</summary>
    public JsonObject Json { get; }

    public JsonObject Model => Json["model"]!.AsObject(); // Put there by the constructor.

    public JsonObject Vocabulary => Model["vocab"]!.AsObject(); // Put there by the constructor.

    public JsonArray AddedTokens => Json["added_tokens"]!.AsArray(); // Put there by the constructor.

    public static JsonObject Added(int id, string content) => new() { ["id"] = id, ["content"] = content, ["special"] = true, ["normalized"] = false };

    /// <summary>Adds a token with the flags of <paramref name="flags"/> set and returns its id.</summary>
    public int Add(string content, params string[] flags)
    {
        var id = Vocabulary.Count + AddedTokens.Count;
        var token = Added(id, content);
        foreach (var flag in flags)
            token[flag] = true;
        AddedTokens.Add(token);
        return id;
    }

    public void WriteFile(string name, string text) => File.WriteAllText(Path.Combine(Folder, name), text, new UTF8Encoding(false));

    /// <summary>Writes tokenizer.json and loads the folder.</summary>
    public HfTokenizer Load()
    {
        WriteFile("tokenizer.json", Json.ToJsonString());
        return HfTokenizer.Load(Folder);
    }

    /// <summary>The tokens of a text as written in the vocabulary.</summary>
    public string[] Tokens(string text)
    {
        var tokenizer = Load();
        return [.. tokenizer.Encode(text).Select(id => tokenizer.IdToToken(id) ?? "?")];
    }

    public void Dispose() => Directory.Delete(Folder, recursive: true);

    private static IEnumerable<string> ByteLetters()
    {
        var next = 256;
        for (var value = 0; value < 256; value++)
            yield return ((char)(value is >= 33 and <= 126 or >= 161 and <= 172 or >= 174 ? value : next++)).ToString();
    }
}
