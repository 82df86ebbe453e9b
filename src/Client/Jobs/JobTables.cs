using System.Collections.Immutable;
using System.Globalization;
using Megatron.Client.Cli;
using Megatron.Grains.Experts;
using Megatron.Grains.Jobs;
using Megatron.Grains.Stages;

namespace Megatron.Client.Jobs;

/// <summary>The tables of <c>megatron jobs show</c>.</summary>
public static class JobTables
{
    private const string Unknown = "-";

    /// <summary>The layers and the newest step of each pipeline stage: what its ranks need for it, how long they wait for neighbours, who is slow.</summary>
    public static TextTable Stages(JobLayout? layout, ImmutableArray<StageStatus> stages)
    {
        var table = new TextTable("stage", "layers", "ranks", "step", "step ms", "compute ms", "bubble", "slow rank");
        foreach (var stage in stages)
        {
            table.Add(
                Number(stage.Stage), layout?.WorkOf(stage.Stage)?.Layers ?? Unknown, Number(stage.NumRanks), Number(stage.Iteration),
                Fixed(stage.StepTime.TotalMilliseconds, "F1"),
                Fixed(stage.ComputeTime?.TotalMilliseconds, "F1"), stage.BubbleFraction is { } bubble ? Fixed(100 * bubble, "F1") + " %" : Unknown,
                stage.Straggler is { } slow ? string.Create(CultureInfo.InvariantCulture, $"{slow.Rank} ({slow.Factor:F1} x)") : Unknown);
        }
        return table;
    }

    /// <summary>Which ranks hold which experts, and their load in the newest step that was counted. Imbalance is the largest over the mean.</summary>
    public static TextTable Experts(ExpertLoad load)
    {
        var table = new TextTable("experts", "ranks", "tokens", "most loaded", "least loaded", "imbalance");
        foreach (var (shard, tokens, most, least, imbalance) in load.Shards)
        {
            table.Add(
                string.Create(CultureInfo.InvariantCulture, $"{shard.FirstExpert}-{shard.EndExpert - 1}"), string.Join(',', shard.Ranks.Select(rank => Number(rank))),
                Number(tokens), Expert(most), Expert(least), Fixed(imbalance, "F2"));
        }
        table.Add("all", "", Number(load.TokensPerExpert.Sum()), "", "", string.Create(CultureInfo.InvariantCulture,
            $"{load.Imbalance:F2}, of the groups {load.ShardImbalance:F2}, at step {load.Iteration}"));
        return table;
    }

    private static string Expert(ExpertTokens expert) => string.Create(CultureInfo.InvariantCulture, $"{expert.Expert} ({expert.Tokens})");

    private static string Number(long number) => number.ToString(CultureInfo.InvariantCulture);

    private static string Fixed(double? number, string format) => number?.ToString(format, CultureInfo.InvariantCulture) ?? Unknown;
}
