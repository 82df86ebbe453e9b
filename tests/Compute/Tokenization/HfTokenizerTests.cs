using System.Globalization;
using System.Text;
using System.Text.Json.Nodes;
using System.Text.RegularExpressions;
using Megatron.Compute.Configuration;
using Megatron.Compute.Tokenization;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Tokenization;

/// <summary>Parts of tokenizer.json that the golden tokenizers do not use, on a small one; expected tokens worked out by hand.</summary>
public sealed class HfTokenizerTests : IDisposable
{
    private readonly TokenizerFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void Encode_Merges_LowestRankFirst() => Assert.Equal(["Ġhell", "o", "Ġ", "he", "l"], _folder.Tokens(" hello hel"));

    [Fact]
    public void Encode_MergesAsPairs_SameAsText()
    {
        _folder.Model["merges"] = JsonNode.Parse("""[["h", "e"], ["l", "l"], ["he", "ll"], ["Ġ", "hell"]]""");
        Assert.Equal(["Ġhell", "o"], _folder.Tokens(" hello"));
    }

    [Theory]
    [InlineData(false, new[] { "Ġ", "he", "l", "l" })]
    [InlineData(true, new[] { "Ġhell" })]
    public void Encode_IgnoreMerges_TakesWholeTokens(bool ignoreMerges, string[] expected)
    {
        _folder.Model["merges"] = JsonNode.Parse("""["h e"]""");
        _folder.Model["ignore_merges"] = ignoreMerges;
        Assert.Equal(expected, _folder.Tokens(" hell"));
    }

    [Fact]
    public void Encode_ByteWithoutToken_IsLeftOut()
    {
        _folder.Vocabulary.Remove("Q");
        Assert.Equal(["hell", "o"], _folder.Tokens("heQllo"));
    }

    [Fact]
    public void Encode_LongWord_HeapEqualsScan()
    {
        // 40 letters go through the scan and 60 through the heap; "hell" and "lhe" leave the merges no freedom across the seams.
        var tokenizer = _folder.Load();
        string[] one = ["hell", "o"];
        foreach (var repeats in (int[])[8, 12, 5_000])
        {
            var ids = tokenizer.Encode(string.Concat(Enumerable.Repeat("hello", repeats)));
            Assert.Equal(Enumerable.Repeat(one, repeats).SelectMany(token => token), ids.Select(tokenizer.IdToToken));
        }
    }

    [Fact]
    public void Encode_RandomWords_HeapEqualsScan()
    {
        var seed = Random.Shared.Next();
        var random = new Random(seed);
        var vocabulary = new Dictionary<string, int>(StringComparer.Ordinal) { ["a"] = 0, ["b"] = 1, ["c"] = 2 };
        var merges = new MergeTable(60);
        for (var rank = 0; rank < 60;)
        {
            var left = vocabulary.ElementAt(random.Next(vocabulary.Count));
            var right = vocabulary.ElementAt(random.Next(vocabulary.Count));
            if (vocabulary.TryAdd(left.Key + right.Key, vocabulary.Count))
                merges[left.Value, right.Value] = new Merge(rank++, vocabulary.Count - 1);
        }

        var model = new BytePairModel(vocabulary, merges, ignoreMerges: false);
        for (var trial = 0; trial < 500; trial++)
        {
            var word = new string([.. Enumerable.Range(0, random.Next(1, 49)).Select(_ => (char)('a' + random.Next(3)))]);
            var byScan = word.Select(letter => letter - 'a').ToArray();
            var byHeap = byScan.ToArray();
            var numScan = model.MergeByScan(byScan, byScan.Length);
            var numHeap = model.MergeByHeap(byHeap, byHeap.Length);
            Assert.True(byScan[..numScan].SequenceEqual(byHeap[..numHeap]), $"seed {seed}, word '{word}'");
        }
    }

    [Fact]
    public void Encode_MegabyteWithoutBreak_EndsInTime()
    {
        var clock = System.Diagnostics.Stopwatch.StartNew();
        var tokenizer = TestTokenizers.Get("qwen3");
        foreach (var letter in "a 李\n")
        {
            var text = new string(letter, 1_000_000);
            Assert.Equal(text, tokenizer.Decode(tokenizer.Encode(text), skipSpecialTokens: false));
        }

        Assert.True(clock.Elapsed < TimeSpan.FromSeconds(60), clock.Elapsed.ToString());
    }

    [Fact]
    public void Encode_AddedTokens_LeftmostLongestWins()
    {
        _folder.Add("<a");
        _folder.Add("<ab>");
        Assert.Equal(["<a", "b", "<ab>", "<a", "<", "<a", "<eos>"], _folder.Tokens("<ab<ab><a<<a<eos>"));
    }

    [Fact]
    public void Encode_StrippingToken_TakesWhiteSpaceAround()
    {
        _folder.Add("[L]", "lstrip");
        _folder.Add("[R]", "rstrip");
        Assert.Equal(["h", "[L]", "Ġ", "h", "Ġ", "[R]", "h"], _folder.Tokens("h \n[L] h [R]\t h"));
        Assert.Equal(["[R]", "[L]"], _folder.Tokens("[R]  [L]"));
    }

    [Fact]
    public void Encode_SingleWordToken_OnlyBetweenNonWords()
    {
        _folder.Add("cat", "single_word");
        Assert.Equal(["cat", "!", "c", "a", "t", "s", "Ġ", "cat", "Ġ", "_", "c", "a", "t"], _folder.Tokens("cat!cats cat _cat"));
    }

    [Fact]
    public void Encode_NormalizedToken_IsFoundInNormalizedTextOnly()
    {
        _folder.Json["normalizer"] = JsonNode.Parse("""{"type": "Sequence", "normalizers": [{"type": "NFKC"}]}""");
        _folder.Add("ﬁn", "normalized");
        _folder.Add("[ﬁ]");
        Assert.Equal(["ﬁn", "ﬁn", "[ﬁ]", "[", "f", "i", "]"], _folder.Tokens("finﬁn[ﬁ][fi]"));
    }

    [Theory]
    [InlineData("NFC", "e\u0301", "\u00E9")]
    [InlineData("NFD", "\u00E9", "e\u0301")]
    [InlineData("NFKC", "\u2460e\u0301", "1\u00E9")]
    [InlineData("NFKD", "\uFB01\u00E9", "fie\u0301")]
    public void Encode_Normalizer_IsApplied(string form, string text, string expected)
    {
        _folder.Json["normalizer"] = new JsonObject { ["type"] = form };
        var tokenizer = _folder.Load();
        Assert.Equal(expected, tokenizer.Decode(tokenizer.Encode(text), skipSpecialTokens: false));
    }

    [Fact]
    public void Encode_TextOnWhichNormalizeThrows_StillEncodes()
    {
        _folder.Json["normalizer"] = JsonNode.Parse("""{"type": "NFC"}""");
        var tokenizer = _folder.Load();
        Assert.Equal("a\uFFFE\u00E9", Decoded("a\uFFFEe\u0301"));
        Assert.Equal("a\uFFFD\u00E9", Decoded("a\uD800e\u0301"));
        Assert.Equal("\uFFFD\uFFFD", Decoded("\uDC00\uD83D"));

        string Decoded(string text) => tokenizer.Decode(tokenizer.Encode(text), skipSpecialTokens: false);
    }

    [Theory]
    [InlineData("Removed", false, new[] { "a", "b" })]
    [InlineData("Isolated", false, new[] { "a", "-", "-", "b" })]
    [InlineData("MergedWithPrevious", false, new[] { "a-", "-", "b" })]
    [InlineData("MergedWithNext", false, new[] { "a", "-", "-b" })]
    [InlineData("Contiguous", false, new[] { "a", "--", "b" })]
    [InlineData("Removed", true, new[] { "-", "-" })]
    public void Split_EachBehavior_CutsAsNamed(string behavior, bool isInverted, string[] expected)
    {
        var step = new SplitStep(PreTokenizer.Compile("-"), Enum.Parse<SplitBehavior>(behavior), isInverted);
        Assert.Equal(expected, Pieces(new PreTokenizer([step], false, null), "a--b"));
    }

    [Fact]
    public void Split_TextThatNoPatternMatches_StaysAsPieces()
    {
        var letters = new SplitStep(PreTokenizer.Compile(@"\p{L}+"), SplitBehavior.Isolated, false);
        var digits = new SplitStep(PreTokenizer.Compile(@"\p{N}"), SplitBehavior.Isolated, false);
        Assert.Equal(["ab", "\u200B\u200B", "1", "2"], Pieces(new PreTokenizer([letters, digits], false, null), "ab\u200B\u200B12"));
    }

    [Fact]
    public void Split_CharactersAboveFfff_MatchTheirCategory()
    {
        var pattern = new SplitStep(PreTokenizer.Compile(@"\p{L}+|\p{N}|\p{S}"), SplitBehavior.Isolated, false);
        Assert.Equal(["a𠀀𝐀b", "𝟘", "1", "👩", "👩"], Pieces(new PreTokenizer([pattern], false, null), "a𠀀𝐀b𝟘1👩👩"));
    }

    [Fact]
    public void Split_LongSInContraction_FoldsLikeTheReference()
    {
        var pattern = new SplitStep(PreTokenizer.Compile(@"(?i:'s|'t)|\p{L}+"), SplitBehavior.Isolated, false);
        Assert.Equal(["a", "'ſ", "t"], Pieces(new PreTokenizer([pattern], false, null), "a'ſt"));
    }

    [Fact]
    public void Split_PatternThatTakesForever_IsTok009()
    {
        var pattern = new Regex("(?:a|aa)+b", RegexOptions.None, TimeSpan.FromMilliseconds(50));
        var preTokenizer = new PreTokenizer([new SplitStep(pattern, SplitBehavior.Isolated, false)], false, null);
        var error = Assert.Throws<ConfigException>(() => Pieces(preTokenizer, new string('a', 200))).Errors.Single();
        Assert.Equal("TOK009", error.Code);
        Assert.Contains("(?:a|aa)+b", error.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("tiny")]
    [InlineData("llama3_1")]
    public void EncodeThenDecode_RandomTexts_GiveTheTextBack(string name)
    {
        var seed = Random.Shared.Next();
        var random = new Random(seed);
        var tokenizer = TestTokenizers.Get(name);
        for (var trial = 0; trial < 400; trial++)
        {
            // NFC makes the texts of tiny comparable; llama3_1 has no normalizer.
            var text = RandomText(random).Normalize();
            var ids = tokenizer.Encode(text);
            Assert.True(text == tokenizer.Decode(ids, skipSpecialTokens: false), $"seed {seed}, trial {trial}: '{text}'");
        }
    }

    [Fact]
    public void StreamingDecoder_RandomIds_EqualsDecode()
    {
        var seed = Random.Shared.Next();
        var random = new Random(seed);
        var tokenizer = TestTokenizers.Get("tiny");
        for (var trial = 0; trial < 400; trial++)
        {
            // Mostly single bytes, so that broken UTF-8 of every kind comes up.
            var ids = Enumerable.Range(0, 30).Select(_ => random.Next(random.Next(3) == 0 ? tokenizer.VocabSize : 256)).ToArray();
            var decoder = new StreamingDecoder(tokenizer, skipSpecialTokens: false);
            var streamed = string.Concat(ids.Select(decoder.Add)) + decoder.Finish();
            Assert.True(tokenizer.Decode(ids, skipSpecialTokens: false) == streamed, $"seed {seed}, ids {string.Join(' ', ids)}");
        }
    }

    [Theory]
    [InlineData(true, new[] { "1", "2", "ab", "3" })]
    [InlineData(false, new[] { "12", "ab", "3" })]
    public void Encode_Digits_AreCutOff(bool isIndividual, string[] expected)
    {
        foreach (var token in (string[])["12", "ab"])
            _folder.Vocabulary[token] = 300 + _folder.Vocabulary.Count;
        _folder.Model["merges"] = JsonNode.Parse("""["1 2", "a b"]""");
        _folder.Json["pre_tokenizer"] = new JsonObject
        {
            ["type"] = "Sequence",
            ["pretokenizers"] = new JsonArray(
                new JsonObject { ["type"] = "Digits", ["individual_digits"] = isIndividual },
                new JsonObject { ["type"] = "ByteLevel", ["use_regex"] = false }),
        };
        Assert.Equal(expected, _folder.Tokens("12ab3"));
    }

    [Fact]
    public void Encode_AddPrefixSpace_OncePerTextBetweenTokens()
    {
        _folder.Json["pre_tokenizer"] = JsonNode.Parse("""{"type": "ByteLevel", "add_prefix_space": true, "use_regex": true}""");
        Assert.Equal(["Ġhell", "o", "Ġhell", "<eos>", "Ġhell"], _folder.Tokens("hello hell<eos>hell"));
    }

    [Theory]
    [InlineData(null, true)]
    [InlineData("""{"bos_token": "<eos>"}""", true)]
    [InlineData("""{"bos_token": "<eos>", "tokenizer_class": "LlamaTokenizerFast", "add_bos_token": false}""", false)]
    public void AddsBos_ByPostProcessorOrLlamaFlag(string? config, bool expected)
    {
        _folder.Json["post_processor"] = JsonNode.Parse("""
            {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<eos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
             "special_tokens": {"<eos>": {"id": "<eos>", "ids": [260], "tokens": ["<eos>"]}}}
            """);
        if (config is not null)
            _folder.WriteFile("tokenizer_config.json", config);
        Assert.Equal(expected, _folder.Load().AddsBos);
        Assert.Equal(260, _folder.Load().BosId);
    }

    [Fact]
    public void Load_SpecialTokensOfEachFile_AreRecognised()
    {
        _folder.WriteFile("tokenizer_config.json", """{"eos_token": "hell", "added_tokens_decoder": {"261": {"content": "<x>", "special": true}}}""");
        _folder.WriteFile("special_tokens_map.json", """{"eos_token": "<eos>", "pad_token": {"content": "<x>"}}""");
        var tokenizer = _folder.Load();
        Assert.Equal(tokenizer.TokenToId("hell"), tokenizer.EosId);
        Assert.Equal(261, tokenizer.PadId);
        Assert.Equal(262, tokenizer.VocabSize);
        Assert.Equal(["s", "hell", "<x>"], _folder.Tokens("shell<x>"));
    }

    [Fact]
    public void StandIns_HaveTheirCategory()
    {
        foreach (var category in Enum.GetValues<UnicodeCategory>())
        {
            // No character above U+FFFF is a separator, a control character or a surrogate.
            if (category is UnicodeCategory.SpaceSeparator or UnicodeCategory.LineSeparator or UnicodeCategory.ParagraphSeparator
                or UnicodeCategory.Control or UnicodeCategory.Surrogate)
                continue;
            Assert.Equal(category, CharUnicodeInfo.GetUnicodeCategory(ShadowText.StandIn(category)));
        }
    }

    [Fact]
    public void Encode_FromSeveralThreads_SameIds()
    {
        var tokenizer = TestTokenizers.Get("tiny");
        var text = File.ReadAllText(Repository.Text("tang-poems.txt"))[..20_000];
        var expected = tokenizer.Encode(text);
        Parallel.For(0, 16, _ => Assert.Equal(expected, tokenizer.Encode(text)));
    }

    [Fact]
    public void Encode_InAnotherCulture_SameIds()
    {
        var tokenizer = TestTokenizers.Get("tiny");
        var expected = tokenizer.Encode("I'LL FILE it'S ıİ");
        var culture = CultureInfo.CurrentCulture;
        try
        {
            CultureInfo.CurrentCulture = CultureInfo.GetCultureInfo("tr-TR");
            Assert.Equal(expected, HfTokenizer.Load(Repository.Asset("tokenizers", "tiny")).Encode("I'LL FILE it'S ıİ"));
        }
        finally
        {
            CultureInfo.CurrentCulture = culture;
        }
    }

    private static string RandomText(Random random)
    {
        var text = new StringBuilder();
        for (var i = random.Next(60); i >= 0; i--)
        {
            text.Append(random.Next(6) switch
            {
                0 => " ",
                1 => (char)random.Next(0x20, 0x7F),
                2 => random.Next(2) == 0 ? "\r\n" : "<|eot_id|>",
                3 => (char)random.Next(0x4E00, 0x9FFF),
                4 => char.ConvertFromUtf32(random.Next(0x1F300, 0x1FAFF)),
                _ => (char)random.Next(0xA0, 0x2FFF),
            });
        }

        return text.ToString();
    }

    private static List<string> Pieces(PreTokenizer preTokenizer, string text)
    {
        var pieces = new List<string>();
        preTokenizer.Split(text, pieces, static (piece, list) => list.Add(piece.ToString()));
        return pieces;
    }
}
