using System.Collections.Concurrent;
using System.Globalization;
using Megatron.Compute.Configuration;
using Megatron.Compute.Training;
using Megatron.Testing;

namespace Megatron.Parity.Tests;

/// <summary>
/// Every layout against one rank: 20 steps on the golden batches. Oracle of losses and norms with per-token loss: the golden trajectory;
/// otherwise our own run on one rank with the same micro-batches, which is the oracle of the final weights always.
/// </summary>
public sealed class ParityMatrixTests(ITestOutputHelper output)
{
    private const double LossTolerance = 1e-4, NormTolerance = 1e-3, WeightTolerance = 1e-3;

    private static readonly ConcurrentDictionary<(string Model, int MicroBatchSize, bool PerToken, bool Packing), Lazy<LayoutResult>> Oracles = new();

    /// <summary>What runs in CI: each kind of layout once.</summary>
    public static TheoryData<string, string, int, bool> FixedSubset => new()
    {
        { "tp2+sp", "qwen2.5-dense", 4, false },
        { "tp4+sp", "qwen3-dense", 1, true },
        { "pp4", "llama3.1-dense", 4, true },
        { "pp2 x vp2", "qwen2.5-dense", 4, true },
        { "pp4 zero bubble", "qwen3-dense", 4, false },
        { "pp3, last stage 2 layers", "qwen2.5-dense", 4, true },
        { "cp2 ring", "qwen2.5-dense", 4, true },
        { "cp4 all-to-all", "qwen3-dense", 1, false },
        { "tp2+sp x pp2 x cp2", "llama3.1-dense", 4, false },
        { "dp4, distributed optimizer, overlapped", "llama3.1-dense", 1, false },
        { "pp2 x dp2, distributed optimizer", "qwen3-moe", 4, true },
        { "tp2+sp x pp2 x dp2, distributed optimizer", "qwen2.5-dense", 4, true },
        { "tp2", "qwen2-moe", 4, true },
        { "tp4+sp", "qwen2-moe", 1, false },
        { "ep4", "qwen3-moe", 1, true },
        { "tp2+sp x ep2 x dp2, distributed optimizer", "qwen2-moe", 4, true },
        { "ep2 x pp2 x dp2", "qwen3-moe", 4, false },
        { "tp2 x etp1 x ep2", "qwen2-moe", 1, true },
        { "tp2+sp x cp2 x ep2", "qwen3-moe", 4, true },
    };

    [Theory, MemberData(nameof(FixedSubset))]
    public void Cell_OfTheFixedSubset_IsWithinTolerance(string cell, string model, int accumulation, bool perToken)
    {
        var deviation = Measure(ParityCell.All.Single(candidate => candidate.Name == cell), model, accumulation, perToken);
        output.WriteLine(deviation.ToString());
        Assert.True(deviation.IsWithinTolerance, $"{cell}, {model}: {deviation}");
    }

    /// <summary>The same with samples of many lengths in a row.</summary>
    [Theory]
    [InlineData("tp2+sp x cp2", "qwen2.5-dense", 1, true)]
    [InlineData("cp4 ring", "qwen3-dense", 4, false)]
    [InlineData("tp2+sp x pp2 x dp2, all overlapped", "qwen3-dense", 4, true)]
    public void PackedCell_OfTheFixedSubset_IsWithinTolerance(string cell, string model, int accumulation, bool perToken)
    {
        var deviation = Measure(ParityCell.All.Single(candidate => candidate.Name == cell).Packed, model, accumulation, perToken);
        output.WriteLine(deviation.ToString());
        Assert.True(deviation.IsWithinTolerance, $"{cell}, packed, {model}: {deviation}");
    }

    [Theory]
    [InlineData("tp2+sp x pp2 x dp2, distributed optimizer", "qwen2.5-dense")]
    [InlineData("cp4 ring", "qwen2.5-dense")]
    [InlineData("ep2 x pp2 x dp2", "qwen3-moe")]
    public void Cell_RunTwice_HasTheSameBits(string name, string model)
    {
        var cell = ParityCell.All.Single(candidate => candidate.Name == name);
        var config = cell.Config with { MicroBatchSize = cell.MicroBatchSizeFor(4) };
        var (first, second) = (LayoutRun.Run(model, config, cell.Ranks, perTokenLoss: true), LayoutRun.Run(model, config, cell.Ranks, perTokenLoss: true));
        Assert.Equal(first.Losses, second.Losses);
        Assert.Equal(first.GradNorms, second.GradNorms);
        Assert.All(first.Weights, pair => Assert.Equal(pair.Value, second.Weights[pair.Key]));
    }

    /// <summary>
    /// GPUs of one process run a rank's collectives one after another, whatever their groups (docs/adr/0012): ranks that start them in different orders
    /// would hang here, until the world's time is up.
    /// </summary>
    [Theory]
    [InlineData("tp2+sp x pp2 x dp2, all overlapped", "qwen3-dense", 4)]
    [InlineData("tp2+sp x pp2 x cp2", "llama3.1-dense", 4)]
    [InlineData("dp4, distributed optimizer, overlapped", "qwen2.5-dense", 1)]
    [InlineData("pp2 x vp2 x dp2", "qwen2.5-dense", 4)]
    [InlineData("cp2 x dp2, distributed optimizer", "qwen3-dense", 1)]
    [InlineData("tp2+sp x cp2 x ep2", "qwen3-moe", 4)]
    [InlineData("ep2 x pp2 x dp2", "qwen3-moe", 4)]
    [InlineData("tp2+sp x ep2 x dp2, distributed optimizer", "qwen2-moe", 4)]
    public void Cell_EachCollectiveHoldsUpAllBehindIt_ComesThrough(string name, string model, int accumulation)
    {
        const int Steps = 3;
        var cell = ParityCell.All.Single(candidate => candidate.Name == name);
        var config = cell.Config with { MicroBatchSize = cell.MicroBatchSizeFor(accumulation) };
        var actual = LayoutRun.RunInLockstep(model, config, cell.Ranks, perTokenLoss: true, Steps);
        using var golden = GoldenFile.Open(Repository.Asset("golden", model));
        var deviation = Largest([.. golden.Trajectory.Take(Steps).Select(step => step.LmLoss)], actual.Losses);
        Assert.True(deviation <= LossTolerance, $"{name}, {model}: {deviation}");
    }

    /// <summary>
    /// All cells, or those whose name begins with one of the words in <c>PARITY_CELLS</c> (separated by commas), the other rows staying as they
    /// are; writes <c>docs/parity.md</c> after each layout. Started by <c>./megatron test Parity --matrix</c>.
    /// </summary>
    [Fact, Trait("Category", "matrix")]
    public void EveryCell_IsWithinTolerance()
    {
        var page = new ParityPage();
        ParityCell[] cells = [.. ParityCell.All, .. ParityCell.AllPacked];
        var titles = cells.SelectMany(cell => Cases.Select(of => ParityPage.TitleOf(cell, of.Accumulation, of.PerToken))).ToArray();
        var failures = new List<string>();
        foreach (var cell in cells.Where(cell => ParityPage.IsChosen(cell.Name)))
        {
            foreach (var (accumulation, perToken) in Cases)
                page.Set(ParityPage.TitleOf(cell, accumulation, perToken), ParityCell.Models.Select(model => Column(cell, model, accumulation, perToken, failures)));
            page.Write(titles, string.Create(CultureInfo.InvariantCulture, $"{LossTolerance:0e+0} / {NormTolerance:0e+0} / {WeightTolerance:0e+0}"));
        }
        Assert.True(failures.Count == 0, string.Join('\n', failures));
    }

    private static (int Accumulation, bool PerToken)[] Cases => [(1, true), (1, false), (4, true), (4, false)];

    private static string Column(ParityCell cell, string model, int accumulation, bool perToken, List<string> failures)
    {
        if (cell.NotApplicable(model, accumulation) is { } reason) return $"n/a: {reason}";
        var deviation = Measure(cell, model, accumulation, perToken);
        if (!deviation.IsWithinTolerance) failures.Add($"{cell.Name}, {model}, accumulation {accumulation}, per token {perToken}: {deviation}");
        return deviation.ToString();
    }

    private static Deviation Measure(ParityCell cell, string model, int accumulation, bool perToken)
    {
        var (microBatchSize, packing) = (cell.MicroBatchSizeFor(accumulation), cell.Config.Packing);
        var oracle = Oracles.GetOrAdd((model, microBatchSize, perToken, packing), key => new Lazy<LayoutResult>(
            () => LayoutRun.Run(key.Model, new TrainingConfig { MicroBatchSize = key.MicroBatchSize, Packing = key.Packing }, 1, key.PerToken))).Value;
        var actual = LayoutRun.Run(model, cell.Config with { MicroBatchSize = microBatchSize }, cell.Ranks, perToken);
        Assert.Equal(oracle.BatchHashes, actual.BatchHashes);
        var (losses, norms) = (oracle.Losses, oracle.GradNorms);
        if (perToken && !packing)
        {
            using var golden = GoldenFile.Open(Repository.Asset("golden", model));
            (losses, norms) = ([.. golden.Trajectory.Select(step => step.LmLoss)], [.. golden.Trajectory.Select(step => step.GradNorm)]);
        }
        return new Deviation(
            Largest(losses, actual.Losses), Largest(norms, actual.GradNorms),
            oracle.Weights.Max(pair => RelativeNorm(pair.Value, actual.Weights[pair.Key])));
    }

    private static double Largest(double[] expected, double[] actual)
    {
        Assert.Equal(expected.Length, actual.Length);
        return expected.Zip(actual, (wanted, found) => Math.Abs(found - wanted) / Math.Abs(wanted)).Max();
    }

    private static double RelativeNorm(float[] expected, float[] actual)
    {
        var (difference, length) = (0.0, 0.0);
        for (var i = 0; i < expected.Length; i++)
        {
            difference += Math.Pow(actual[i] - (double)expected[i], 2);
            length += Math.Pow(expected[i], 2);
        }
        return Math.Sqrt(difference / length);
    }

    private sealed record Deviation(double Loss, double Norm, double Weights)
    {
        public bool IsWithinTolerance => Loss <= LossTolerance && Norm <= NormTolerance && Weights <= WeightTolerance;

        public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"{Loss:0.0e+0} / {Norm:0.0e+0} / {Weights:0.0e+0}");
    }
}
