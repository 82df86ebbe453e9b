using System.Diagnostics;
using System.Globalization;
using Megatron.Compute.Inference;
using Megatron.Compute.Models;
using Megatron.Compute.Tokenization;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Inference;

/// <summary>
/// Tokens per second of a model of the quick start's size on one thread. Run alone:
/// <c>./megatron test Compute -- -class '*GenerationBenchmark' -showLiveOutput</c>.
/// </summary>
[Collection<Alone>]
public sealed class GenerationBenchmark(ITestOutputHelper output)
{
    private const int PromptLength = 30, NumTokens = 64, NumRuns = 5;
    private const double LeastTokensPerSecond = 200;

    [Fact, Trait("Category", "benchmark")]
    public void Generate_QuickstartModel_AtLeast200TokensPerSecond()
    {
        TorchTestSetup.EnsureLoaded();
        var config = HfConfigReader.Parse(File.ReadAllText(Path.Combine(Repository.Root, "src", "Client", "Quickstart", "Assets", "model", "config.json")), "config.json").Model;
        using var model = TestModels.Whole(config, TestModels.Options(ScalarType.Float32));
        ModelInitializer.Initialize(model.Parameters, config, seed: 1);
        var single = Measure(model, 1);
        Measure(model, 8);
        Assert.True(single >= LeastTokensPerSecond, string.Create(CultureInfo.InvariantCulture, $"best of {NumRuns} was {single:F0} tokens/s"));
    }

    /// <summary>Best of some runs, by processor time of this one thread: on idle cores that is the time a user waits.</summary>
    private double Measure(GptModel model, int batchSize)
    {
        var tokenizer = HfTokenizer.Load(Repository.Asset("tokenizers", "tiny"));
        var generator = new TextGenerator(model, tokenizer, StopRules.None, seed: 0);
        var requests = Enumerable.Range(0, batchSize).Select(i => new GenerationRequest
        {
            PromptIds = [.. Enumerable.Range(100 * i, PromptLength)], Sampling = SamplingOptions.Greedy, MaxNewTokens = NumTokens, Sequence = i,
        }).ToArray();
        var (best, bestByWallClock) = (0.0, 0.0);
        for (var run = 0; run < NumRuns; run++)
        {
            var (wall, processor) = (Stopwatch.GetTimestamp(), ThreadClock.Seconds);
            var numTokens = generator.Generate(requests, null, TestContext.Current.CancellationToken).Sum(result => result.NumGeneratedTokens);
            best = Math.Max(best, numTokens / (ThreadClock.Seconds - processor));
            bestByWallClock = Math.Max(bestByWallClock, numTokens / Stopwatch.GetElapsedTime(wall).TotalSeconds);
        }
        output.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"batch {batchSize}: {best:F0} tokens/s by processor time, {bestByWallClock:F0} by the clock ({model.Parameters.Sum(parameter => parameter.NumElements) / 1e6:F1}M parameters, {get_num_threads()} thread)"));
        return best;
    }
}
