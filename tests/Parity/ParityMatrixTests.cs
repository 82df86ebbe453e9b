using System.Collections.Concurrent;
using System.Globalization;
using System.Text;
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

    private static readonly ConcurrentDictionary<(string Model, int MicroBatchSize, bool PerToken), Lazy<LayoutResult>> Oracles = new();

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
        { "dp4, distributed optimizer", "llama3.1-dense", 1, false },
        { "pp2 x dp2, distributed optimizer", "qwen3-moe", 4, true },
        { "tp2+sp x pp2 x dp2, distributed optimizer", "qwen2.5-dense", 4, true },
    };

    [Theory, MemberData(nameof(FixedSubset))]
    public void Cell_OfTheFixedSubset_IsWithinTolerance(string cell, string model, int accumulation, bool perToken)
    {
        var deviation = Measure(ParityCell.All.Single(candidate => candidate.Name == cell), model, accumulation, perToken);
        output.WriteLine(deviation.ToString());
        Assert.True(deviation.IsWithinTolerance, $"{cell}, {model}: {deviation}");
    }

    [Fact]
    public void Cell_RunTwice_HasTheSameBits()
    {
        var cell = ParityCell.All.Single(candidate => candidate.Name == "tp2+sp x pp2 x dp2, distributed optimizer");
        var config = cell.Config with { MicroBatchSize = cell.MicroBatchSizeFor(4) };
        var (first, second) = (LayoutRun.Run("qwen2.5-dense", config, cell.Ranks, perTokenLoss: true), LayoutRun.Run("qwen2.5-dense", config, cell.Ranks, perTokenLoss: true));
        Assert.Equal(first.Losses, second.Losses);
        Assert.Equal(first.GradNorms, second.GradNorms);
        Assert.All(first.Weights, pair => Assert.Equal(pair.Value, second.Weights[pair.Key]));
    }

    /// <summary>All cells; writes <c>docs/parity.md</c>. Started by <c>./megatron test --matrix</c>.</summary>
    [Fact, Trait("Category", "matrix")]
    public void EveryCell_IsWithinTolerance()
    {
        var table = new StringBuilder();
        var failures = new List<string>();
        var numRuns = 0;
        foreach (var cell in ParityCell.All)
            foreach (var accumulation in (int[])[1, 4])
                foreach (var perToken in (bool[])[true, false])
                {
                    table.Append(CultureInfo.InvariantCulture, $"| {cell.Name} | {accumulation} | {(perToken ? "token" : "micro-batch")} |");
                    foreach (var model in ParityCell.Models)
                    {
                        if (cell.NotApplicable(model, accumulation) is { } reason)
                        {
                            table.Append(CultureInfo.InvariantCulture, $" n/a: {reason} |");
                            continue;
                        }
                        var deviation = Measure(cell, model, accumulation, perToken);
                        numRuns++;
                        table.Append(CultureInfo.InvariantCulture, $" {deviation} |");
                        if (!deviation.IsWithinTolerance) failures.Add($"{cell.Name}, {model}, accumulation {accumulation}, per token {perToken}: {deviation}");
                    }
                    table.Append('\n');
                }
        var page = Path.Combine(Repository.Root, "docs", "parity.md");
        // Sections of other tests follow the first table and stay.
        var rest = File.ReadAllText(page) is { } old && old.IndexOf("\n## ", StringComparison.Ordinal) is >= 0 and var begin ? old[begin..] : "";
        File.WriteAllText(page, Page(table.ToString(), numRuns) + rest);
        Assert.True(failures.Count == 0, string.Join('\n', failures));
    }

    private static Deviation Measure(ParityCell cell, string model, int accumulation, bool perToken)
    {
        var microBatchSize = cell.MicroBatchSizeFor(accumulation);
        var oracle = Oracles.GetOrAdd((model, microBatchSize, perToken), key => new Lazy<LayoutResult>(
            () => LayoutRun.Run(key.Model, new TrainingConfig { MicroBatchSize = key.MicroBatchSize }, 1, key.PerToken))).Value;
        var actual = LayoutRun.Run(model, cell.Config with { MicroBatchSize = microBatchSize }, cell.Ranks, perToken);
        Assert.Equal(oracle.BatchHashes, actual.BatchHashes);
        var (losses, norms) = (oracle.Losses, oracle.GradNorms);
        if (perToken)
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

    private static string Page(string rows, int numRuns) => string.Create(CultureInfo.InvariantCulture, $"""
        # Parity of layouts

        Written by `./megatron test --matrix`; do not edit. Each cell trains a golden model for 20 steps in fp32 on a CPU, the ranks being threads
        that communicate by the loopback backend, and shows the largest relative deviation of loss / gradient norm / final weights (L2 norm of a tensor).
        Allowed: {LossTolerance:0e+0} / {NormTolerance:0e+0} / {WeightTolerance:0e+0}. Oracle of loss and norm with a mean over tokens: the golden
        trajectory of an independent implementation; with a mean over micro-batches: one rank on the same micro-batches. Oracle of the weights: one rank.
        {numRuns} runs.

        | layout | accumulation | mean over | {string.Join(" | ", ParityCell.Models)} |
        |---|---|---|{string.Concat(ParityCell.Models.Select(_ => "---|"))}
        {rows}
        """).ReplaceLineEndings("\n").TrimEnd() + "\n";

    private sealed record Deviation(double Loss, double Norm, double Weights)
    {
        public bool IsWithinTolerance => Loss <= LossTolerance && Norm <= NormTolerance && Weights <= WeightTolerance;

        public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"{Loss:0.0e+0} / {Norm:0.0e+0} / {Weights:0.0e+0}");
    }
}
