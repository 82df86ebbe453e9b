using System.IO.Compression;
using System.Text.Json;
using Megatron.Compute.Tokenization;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Tokenization;

/// <summary>Ids and texts of the Rust library (tests/assets/tokenizers/dev-*.json.gz), every line.</summary>
public sealed class HfTokenizerGoldenTests
{
    public static TheoryData<string> Names => ["tiny", "qwen3", "llama3_1"];

    [Theory]
    [MemberData(nameof(Names))]
    public void EncodeAndDecode_EveryGoldenLine_EqualTheReference(string name)
    {
        var tokenizer = TestTokenizers.Get(name);
        var failures = new List<string>();
        var numRows = 0;
        foreach (var row in ReadGolden(name))
        {
            numRows++;
            var ids = tokenizer.Encode(row.Text);
            if (!ids.AsSpan().SequenceEqual(row.Ids))
                failures.Add($"ids of '{row.Text}': [{string.Join(' ', ids)}], expected [{string.Join(' ', row.Ids)}]");
            var decoded = tokenizer.Decode(row.Ids, skipSpecialTokens: false);
            if (decoded != (row.Decoded ?? row.Text))
                failures.Add($"text of '{row.Text}': '{decoded}'");
            var streaming = new StreamingDecoder(tokenizer, skipSpecialTokens: false);
            var streamed = string.Concat(row.Ids.Select(streaming.Add)) + streaming.Finish();
            if (streamed != decoded)
                failures.Add($"streamed text of '{row.Text}': '{streamed}'");
        }

        Assert.Empty(failures);
        Assert.Equal(750, numRows);
    }

    [Theory]
    [InlineData("tiny", 4085, null, "<|im_end|>", "<|endoftext|>", false)]
    [InlineData("qwen3", 151669, null, "<|im_end|>", "<|endoftext|>", false)]
    [InlineData("llama3_1", 128256, "<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>", true)]
    public void Load_SpecialTokens_AreThoseOfTheFiles(string name, int vocabSize, string? bos, string eos, string pad, bool addsBos)
    {
        var tokenizer = TestTokenizers.Get(name);
        Assert.Equal(vocabSize, tokenizer.VocabSize);
        Assert.Equal(bos is null ? null : tokenizer.TokenToId(bos), tokenizer.BosId);
        Assert.Equal(tokenizer.TokenToId(eos), tokenizer.EosId);
        Assert.Equal(tokenizer.TokenToId(pad), tokenizer.PadId);
        Assert.Equal(addsBos, tokenizer.AddsBos);
        Assert.Contains(tokenizer.TokenToId(eos) ?? -1, tokenizer.SpecialIds);
    }

    [Fact]
    public void Decode_SkipSpecialTokens_LeavesThemOut()
    {
        var tokenizer = TestTokenizers.Get("qwen3");
        var ids = tokenizer.Encode("<|im_start|>user\nhi<think>x</think><|im_end|>");
        Assert.Equal("user\nhi<think>x</think>", tokenizer.Decode(ids, skipSpecialTokens: true));
        Assert.Equal("user\nhi<think>x</think>", StreamAll(new StreamingDecoder(tokenizer, skipSpecialTokens: true), ids));
        Assert.Equal("", tokenizer.Decode([151_700, -1, int.MaxValue], skipSpecialTokens: false));
        Assert.Null(tokenizer.IdToToken(151_700));
    }

    [Fact]
    public void StreamingDecoder_CharacterOverSeveralTokens_ComesOutWhole()
    {
        var tokenizer = TestTokenizers.Get("tiny");
        var ids = tokenizer.Encode("👩‍👩");
        var decoder = new StreamingDecoder(tokenizer, skipSpecialTokens: false);
        var parts = ids.Select(decoder.Add).ToList();
        Assert.Equal(["", "", "", "👩"], parts[..4]);
        Assert.Equal("👩‍👩", string.Concat(parts));
        decoder.Add(ids[0]);
        Assert.Equal("\uFFFD", decoder.Finish());
    }

    private static string StreamAll(StreamingDecoder decoder, int[] ids) => string.Concat(ids.Select(decoder.Add)) + decoder.Finish();

    private static List<GoldenRow> ReadGolden(string name)
    {
        using var file = File.OpenRead(Repository.Asset("tokenizers", $"dev-{name}.json.gz"));
        using var stream = new GZipStream(file, CompressionMode.Decompress);
        return JsonSerializer.Deserialize<List<GoldenRow>>(stream, JsonSerializerOptions.Web) ?? [];
    }

    private sealed record GoldenRow(string Text, int[] Ids, string? Decoded);
}
