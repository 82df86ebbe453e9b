using Megatron.Compute.Configuration;
using Megatron.Compute.Inference;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Inference;

public sealed class SamplerTests
{
    [Fact]
    public void Next_Temperature0_TakesTheFirstOfTheLikeliest() => Assert.Equal(2, Next(SamplingOptions.Greedy, [0, 1, 5, 5, -3]));

    [Fact]
    public void Next_RepetitionPenalty_LowersPresentTokensOnly()
    {
        var sampler = new Sampler(SamplingOptions.Greedy with { RepetitionPenalty = 2 }, seed: 0, sequence: 0);
        sampler.Observe([0, 2]);
        float[] logits = [4, 3, -1, -1.5f];
        Assert.Equal(1, sampler.Next(logits));
        Assert.Equal([2f, 3f, -2f, -1.5f], logits);
    }

    [Fact]
    public void Next_ManyDraws_FollowTheSoftmax()
    {
        float[] logits = [0, MathF.Log(2), MathF.Log(5)];
        var counts = Draw(Plain, logits, 20_000);
        Assert.All(new[] { 1.0, 2, 5 }.Select((weight, i) => (Expected: weight / 8, Found: counts[i] / 20_000.0)),
            pair => Assert.InRange(pair.Found, pair.Expected - 0.015, pair.Expected + 0.015)); // four standard deviations
    }

    [Fact]
    public void Next_Temperature_SharpensTheSoftmax()
    {
        var counts = Draw(Plain with { Temperature = 0.5 }, [0, MathF.Log(2)], 20_000);
        Assert.InRange(counts[1] / 20_000.0, 0.785, 0.815); // 4 / 5
    }

    [Fact]
    public void Next_TopK_LeavesOutTheRest() => Assert.Equal(0, Draw(Plain with { TopK = 2 }, [1, 3, 2, 0.5f], 2000).Where((_, id) => id is 0 or 3).Sum());

    [Fact]
    public void Next_TopP_KeepsTheSmallestSetThatHoldsTheShare()
    {
        // Probabilities 0.5, 0.3, 0.2.
        float[] logits = [MathF.Log(0.3f), MathF.Log(0.5f), MathF.Log(0.2f)];
        var counts = Draw(Plain with { TopP = 0.6 }, logits, 4000);
        Assert.Equal(0, counts[2]);
        Assert.InRange(counts[1] / 4000.0, 0.59, 0.66); // 0.5 / 0.8
        Assert.Equal(4000, Draw(Plain with { TopP = 0.001 }, logits, 4000)[1]);
    }

    [Fact]
    public void With_OptionsOverFile_UserWinsAndDoSampleDecides()
    {
        using var folder = new TemporaryFolder();
        var path = Path.Combine(folder.Root, GenerationDefaults.FileName);
        Assert.Equal(0, GenerationDefaults.Read(folder.Root).With(new TrainingConfig()).Temperature);
        File.WriteAllText(path, """{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [7, 9]}""");
        var defaults = GenerationDefaults.Read(folder.Root);
        Assert.Equal([7, 9], defaults.EosIds);
        Assert.Equal(new SamplingOptions { Temperature = 0.6, TopK = 20, TopP = 0.95, RepetitionPenalty = 1 }, defaults.With(new TrainingConfig()));
        Assert.Equal(0, defaults.With(new TrainingConfig { Temperature = 0 }).Temperature);
        Assert.Equal(3, defaults.With(new TrainingConfig { TopK = 3 }).TopK);
        File.WriteAllText(path, """{"eos_token_id": 5, "do_sample": false, "temperature": 0.6}""");
        Assert.Equal(0, GenerationDefaults.Read(folder.Root).With(new TrainingConfig()).Temperature);
        Assert.Equal([5], GenerationDefaults.Read(folder.Root).EosIds);
        File.WriteAllText(path, """{"temperature": "warm"}""");
        Assert.Equal("MODEL030", Assert.Throws<ConfigException>(() => GenerationDefaults.Read(folder.Root)).Errors[0].Code);
    }

    private static SamplingOptions Plain { get; } = new() { Temperature = 1, TopK = 0, TopP = 1, RepetitionPenalty = 1 };

    private static int Next(SamplingOptions options, float[] logits) => new Sampler(options, seed: 0, sequence: 0).Next(logits);

    private static int[] Draw(SamplingOptions options, float[] logits, int count)
    {
        var sampler = new Sampler(options, seed: 11, sequence: 0);
        var counts = new int[logits.Length];
        for (var i = 0; i < count; i++) counts[sampler.Next([.. logits])]++;
        return counts;
    }
}
