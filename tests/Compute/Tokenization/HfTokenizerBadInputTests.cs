using System.IO.Compression;
using System.Text;
using System.Text.Json.Nodes;
using Megatron.Compute.Configuration;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Tests.Tokenization;

/// <summary>Damaged or unsupported tokenizer folders: one error with its code, naming what is wrong.</summary>
public sealed class HfTokenizerBadInputTests : IDisposable
{
    private readonly TokenizerFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void Load_FolderWithoutTokenizer_IsTok001() => AssertRefused("TOK001", _folder.Folder, () => HfTokenizer.Load(_folder.Folder));

    [Fact]
    public void Load_MissingFolder_IsTok001() => AssertRefused("TOK001", "/no/such", () => HfTokenizer.Load("/no/such"));

    [Fact]
    public void Load_OnlySentencePiece_IsTok001AndSaysSo()
    {
        _folder.WriteFile("tokenizer.model", "x");
        AssertRefused("TOK001", "SentencePiece", () => HfTokenizer.Load(_folder.Folder));
    }

    [Fact]
    public void Load_JsonCutAnywhere_IsTok002()
    {
        var whole = Encoding.UTF8.GetBytes(_folder.Json.ToJsonString());
        for (var length = 0; length < whole.Length; length += 97)
        {
            File.WriteAllBytes(Path.Combine(_folder.Folder, "tokenizer.json"), whole[..length]);
            AssertRefused("TOK002", "tokenizer.json", () => HfTokenizer.Load(_folder.Folder));
        }
    }

    [Fact]
    public void Load_GzipCutOrNotGzip_IsTok002()
    {
        var path = Path.Combine(_folder.Folder, "tokenizer.json.gz");
        File.WriteAllText(path, "not gzip");
        AssertRefused("TOK002", path, () => HfTokenizer.Load(_folder.Folder));

        using var memory = new MemoryStream();
        using (var gzip = new GZipStream(memory, CompressionLevel.Fastest, leaveOpen: true))
            gzip.Write(Encoding.UTF8.GetBytes(_folder.Json.ToJsonString()));
        File.WriteAllBytes(path, memory.ToArray()[..(int)(memory.Length / 2)]);
        AssertRefused("TOK002", path, () => HfTokenizer.Load(_folder.Folder));
    }

    [Theory]
    [InlineData("[]")]
    [InlineData("{}")]
    [InlineData("null")]
    [InlineData("""{"model": 3}""")]
    [InlineData("""{"model": {"type": "BPE"}}""")]
    [InlineData("""{"model": {"type": "BPE", "vocab": {"a": "x"}, "merges": []}}""")]
    [InlineData("""{"model": {"type": "BPE", "vocab": {"a": 99999999999}, "merges": []}}""")]
    [InlineData("""{"model": {"type": "BPE", "vocab": [], "merges": []}}""")]
    public void Load_JsonOfAnotherForm_IsTok002(string json)
    {
        _folder.WriteFile("tokenizer.json", json);
        AssertRefused("TOK002", "tokenizer.json", () => HfTokenizer.Load(_folder.Folder));
    }

    [Fact]
    public void Load_ConfigDamaged_IsTok002NamingIt()
    {
        _folder.WriteFile("tokenizer_config.json", "{");
        AssertRefused("TOK002", "tokenizer_config.json", () => _folder.Load());
    }

    [Theory]
    [InlineData("x y", "xy")]
    [InlineData("zz e", "zz")]
    [InlineData("h e l", "not a pair")]
    [InlineData("he", "not a pair")]
    public void Load_MergeWithoutToken_IsTok003(string merge, string named)
    {
        _folder.Model["merges"] = new JsonArray(merge);
        AssertRefused("TOK003", named, () => _folder.Load());
    }

    [Fact]
    public void Load_TwoTokensOneId_IsTok004()
    {
        _folder.Vocabulary["new"] = 5;
        AssertRefused("TOK004", "'new' of tokenizer.json have the same id 5", () => _folder.Load());
    }

    [Fact]
    public void Load_TokenTwiceInVocabulary_IsTok004()
    {
        _folder.WriteFile("tokenizer.json", """{"model": {"type": "BPE", "vocab": {"a": 0, "a": 1}, "merges": []}}""");
        AssertRefused("TOK004", "'a'", () => HfTokenizer.Load(_folder.Folder));
    }

    [Fact]
    public void Load_AddedTokenOnUsedId_IsTok004()
    {
        _folder.AddedTokens.Add(TokenizerFolder.Added(7, "<pad>"));
        AssertRefused("TOK004", "same id 7", () => _folder.Load());
    }

    [Fact]
    public void Load_ConfigGivesAddedTokenAnotherId_IsTok004()
    {
        _folder.WriteFile("tokenizer_config.json", """{"added_tokens_decoder": {"999": {"content": "<eos>", "special": true}}}""");
        AssertRefused("TOK004", "'<eos>' has id 260 and id 999", () => _folder.Load());
    }

    [Theory]
    [InlineData(-1)]
    [InlineData(int.MaxValue)]
    public void Load_AddedTokenIdNoVocabularyHolds_IsTok005(int id)
    {
        _folder.AddedTokens.Add(TokenizerFolder.Added(id, "<pad>"));
        AssertRefused("TOK005", "'<pad>'", () => _folder.Load());
    }

    [Theory]
    [InlineData(-1)]
    [InlineData(int.MaxValue)]
    public void Load_VocabularyIdNoVocabularyHolds_IsTok005(int id)
    {
        _folder.Vocabulary["new"] = id;
        AssertRefused("TOK005", "damaged", () => _folder.Load());
    }

    [Fact]
    public void Load_NamedSpecialTokenUnknown_IsTok005()
    {
        _folder.WriteFile("tokenizer_config.json", """{"pad_token": {"content": "<nopad>"}}""");
        AssertRefused("TOK005", "pad_token = '<nopad>'", () => _folder.Load());
    }

    [Fact]
    public void Load_PostProcessorIdOutsideVocabulary_IsTok005()
    {
        _folder.Json["post_processor"] = JsonNode.Parse("""
            {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
             "special_tokens": {"<s>": {"id": "<s>", "ids": [5000], "tokens": ["<s>"]}}}
            """);
        AssertRefused("TOK005", "5000", () => _folder.Load());
    }

    [Theory]
    [InlineData("/model/type", "\"Unigram\"", "Unigram")]
    [InlineData("/model/byte_fallback", "true", "byte_fallback")]
    [InlineData("/model/dropout", "0.1", "dropout")]
    [InlineData("/model/continuing_subword_prefix", "\"##\"", "##")]
    [InlineData("/model/end_of_word_suffix", "\"</w>\"", "</w>")]
    [InlineData("/normalizer", """{"type": "Lowercase"}""", "Lowercase")]
    [InlineData("/normalizer", """{"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Replace"}]}""", "Replace")]
    [InlineData("/pre_tokenizer", """{"type": "Metaspace"}""", "Metaspace")]
    [InlineData("/pre_tokenizer", "null", "ByteLevel")]
    [InlineData("/pre_tokenizer", """{"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, {"type": "Digits"}]}""", "Digits after ByteLevel")]
    [InlineData("/pre_tokenizer", """{"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Other"}""", "Other")]
    [InlineData("/pre_tokenizer", """{"type": "Split", "pattern": {"Regex": "a++"}, "behavior": "Isolated"}""", "a++")]
    [InlineData("/post_processor", """{"type": "BertProcessing"}""", "BertProcessing")]
    [InlineData("/decoder", """{"type": "Metaspace"}""", "Metaspace")]
    [InlineData("/decoder", "null", "ByteLevel")]
    public void Load_UnsupportedPart_IsTok007NamingIt(string path, string value, string named)
    {
        var names = path[1..].Split('/');
        var parent = names.Length == 2 ? _folder.Model : _folder.Json;
        parent[names[^1]] = JsonNode.Parse(value);
        AssertRefused("TOK007", named, () => _folder.Load());
    }

    [Fact]
    public void Load_UnknownTokenThatCouldAppear_IsTok007()
    {
        _folder.Vocabulary.Remove("Q");
        _folder.Model["unk_token"] = "h";
        AssertRefused("TOK007", "unk_token", () => _folder.Load());
    }

    [Fact]
    public void CheckAgainst_FewerEmbeddingRowsThanIds_IsTok006()
    {
        var tokenizer = TestTokenizers.Get("tiny");
        tokenizer.CheckAgainst(tokenizer.VocabSize);
        AssertRefused("TOK006", "4084", () => tokenizer.CheckAgainst(tokenizer.VocabSize - 1));
    }

    [Fact]
    public void Load_RandomlyDamagedFile_LoadsOrIsRefused()
    {
        var seed = Random.Shared.Next();
        var random = new Random(seed);
        _folder.Add("[X]", "lstrip");
        var whole = Encoding.UTF8.GetBytes(_folder.Json.ToJsonString());
        var numRefused = 0;
        for (var trial = 0; trial < 1000; trial++)
        {
            var damaged = whole.ToArray();
            for (var i = random.Next(1, 4); i > 0; i--)
                damaged[random.Next(damaged.Length)] = (byte)random.Next(0x20, 0x7F);
            File.WriteAllBytes(Path.Combine(_folder.Folder, "tokenizer.json"), damaged);
            try
            {
                HfTokenizer.Load(_folder.Folder).Encode("hello <eos>");
            }
            catch (ConfigException)
            {
                numRefused++;
            }
            catch (Exception error)
            {
                Assert.Fail($"seed {seed}, trial {trial}: {error}");
            }
        }

        Assert.InRange(numRefused, 100, 1000);
    }

    private static void AssertRefused(string code, string named, Action action)
    {
        var error = Assert.Single(Assert.Throws<ConfigException>(action).Errors);
        Assert.Equal(code, error.Code);
        Assert.Contains(named, error.Message, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', error.Message);
    }
}
