using System.Globalization;
using System.Text;
using Megatron.Compute.Tokenization;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Tokenization;

/// <summary>
/// Encoding speed on one core. Run alone:
/// <c>tests/Compute/bin/Release/net10.0/Megatron.Compute.Tests -trait Category=benchmark -class '*HfTokenizerBenchmark'
/// -showLiveOutput</c>.
/// </summary>
[Collection<Alone>]
public sealed class HfTokenizerBenchmark(ITestOutputHelper output)
{
    [Fact]
    [Trait("Category", "benchmark")]
    public void Encode_Qwen3OnTwoBooks_AtLeast5MegabytesPerSecond()
    {
        string[] names = ["moby-dick.txt", "tang-poems.txt"];
        var texts = names.Select(name => File.ReadAllText(Repository.Text(name))).ToList();
        var megabytes = texts.Sum(text => Encoding.UTF8.GetByteCount(text)) / 1e6;
        var best = 0.0;
        for (var run = 1; run <= 5; run++)
        {
            // A new tokenizer each time: its cache of words is empty, as for texts never seen. The second figure is with the cache full.
            // The first word compiles the regular expression, once for each tokenizer.
            var tokenizer = HfTokenizer.Load(Repository.Asset("tokenizers", "qwen3"));
            tokenizer.Encode("warm-up");
            var (numTokens, cold) = Measure(tokenizer, texts);
            var (_, warm) = Measure(tokenizer, texts);
            best = Math.Max(best, megabytes / cold);
            output.WriteLine(string.Create(CultureInfo.InvariantCulture,
                $"run {run}: {megabytes:F2} MB, {numTokens} tokens, {megabytes / cold:F1} MB/s, "
                + $"with the words cached {megabytes / warm:F1} MB/s"));
        }

        Assert.True(best >= 5, string.Create(CultureInfo.InvariantCulture, $"best of 5 was {best:F1} MB/s"));
    }

    /// <summary>Seconds of processor time of this thread, so that a busy machine does not fail the test.</summary>
    private static (int NumTokens, double Seconds) Measure(HfTokenizer tokenizer, List<string> texts)
    {
        var begin = ThreadClock.Seconds;
        var numTokens = texts.Sum(text => tokenizer.Encode(text).Length);
        return (numTokens, ThreadClock.Seconds - begin);
    }
}
