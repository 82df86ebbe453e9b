using System.Collections.Concurrent;
using System.Globalization;
using System.Text;
using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Testing;

namespace Megatron.Parity.Tests;

/// <summary>
/// Any layout into any layout, optimizer included: five steps in one layout, a checkpoint, five more in another. Oracle: one rank without
/// interruption; in the same layout the same bits.
/// </summary>
public sealed class ReshardingTests(ReshardingTests.Runs runs) : IClassFixture<ReshardingTests.Runs>
{
    private const double LossTolerance = 1e-4;
    private const string Model = "qwen3-dense", SectionTitle = "## Checkpoints into other layouts";

    private static readonly ParityCell oneRank = new("one rank", 1, new TrainingConfig { UseDistributedOptimizer = false });

    /// <summary>The layouts of the table.</summary>
    private static readonly IReadOnlyList<ParityCell> layouts =
    [
        oneRank,
        .. new[]
        {
            "tp2", "tp4+sp", "pp4", "pp2 x vp2", "pp3, last stage 2 layers", "cp2 ring", "cp2 x dp2, distributed optimizer", "tp2+sp x cp2", "dp2", "dp2, distributed optimizer",
            "dp4, distributed optimizer", "tp2 x pp2", "pp2 x vp2 x dp2", "tp2+sp x pp2 x dp2, distributed optimizer",
        }.Select(name => ParityCell.All.Single(cell => cell.Name == name)),
    ];

    /// <summary>What runs in CI: each kind of layout saved once and loaded once.</summary>
    public static TheoryData<string, string> FixedSubset => new()
    {
        { "tp2+sp x pp2 x dp2, distributed optimizer", "one rank" },
        { "one rank", "tp2+sp x pp2 x dp2, distributed optimizer" },
        { "tp4+sp", "pp2 x vp2 x dp2" },
        { "pp2 x vp2", "dp4, distributed optimizer" },
        { "dp4, distributed optimizer", "cp2 x dp2, distributed optimizer" },
        { "cp2 x dp2, distributed optimizer", "pp3, last stage 2 layers" },
        { "dp2", "tp2 x pp2" },
        { "dp4, distributed optimizer", "dp4, distributed optimizer" },
        { "tp2+sp x pp2 x dp2, distributed optimizer", "tp2+sp x pp2 x dp2, distributed optimizer" },
    };

    [Theory, MemberData(nameof(FixedSubset))]
    public void Load_InAnotherLayout_ContinuesTheTrajectoryOfOneRank(string from, string to)
    {
        var deviation = runs.Continue(Of(from), Of(to));
        if (from == to) Assert.Equal(0, deviation);
        Assert.InRange(deviation, 0, LossTolerance);
    }

    [Theory]
    [InlineData("dp2, distributed optimizer", "dp4, distributed optimizer")]
    [InlineData("dp4, distributed optimizer", "one rank")]
    [InlineData("one rank", "dp2")]
    public void Load_OtherNumberOfReplicasWithLogicalShards_HasTheSameBits(string from, string to)
    {
        ParityCell With(string name) => Of(name) with { Name = name + ", 4 shards", Config = Of(name).Config with { LogicalDataShards = 4 } };
        Assert.Equal(runs.Whole(With("one rank")).Losses[5..], runs.LossesAfterLoad(With(from), With(to)));
    }

    /// <summary>Every pair; writes its section of <c>docs/parity.md</c>. Started by <c>./megatron test --matrix</c>.</summary>
    [Fact, Trait("Category", "matrix")]
    public void EveryPair_IsWithinTolerance()
    {
        var (table, failures) = (new StringBuilder(), new List<string>());
        foreach (var from in layouts)
        {
            table.Append(CultureInfo.InvariantCulture, $"| {from.Name} |");
            foreach (var to in layouts)
            {
                var deviation = runs.Continue(from, to);
                table.Append(CultureInfo.InvariantCulture, $" {(from == to && deviation == 0 ? "same bits" : deviation.ToString("0.0e+0", CultureInfo.InvariantCulture))} |");
                if (deviation > LossTolerance || (from == to && deviation != 0)) failures.Add($"{from.Name} into {to.Name}: {deviation:E2}");
            }
            table.Append('\n');
        }
        WriteSection(table.ToString());
        Assert.True(failures.Count == 0, string.Join('\n', failures));
    }

    private static ParityCell Of(string name) => layouts.Single(layout => layout.Name == name);

    private static void WriteSection(string rows)
    {
        var path = Path.Combine(Repository.Root, "docs", "parity.md");
        var text = File.ReadAllText(path);
        var begin = text.IndexOf(SectionTitle, StringComparison.Ordinal);
        var before = (begin < 0 ? text : text[..begin]).TrimEnd();
        File.WriteAllText(path, string.Create(CultureInfo.InvariantCulture, $"""
            {before}

            {SectionTitle}

            Rows saved, columns loaded: five steps of {Model} in the one layout, a checkpoint with optimizer state, five more steps in the other, in fp32 on a
            CPU. Shown is the largest relative deviation of the last five losses from one rank without interruption (allowed: {LossTolerance:0e+0}); on the
            diagonal "same bits" means equal, bit for bit, to the same layout without interruption. {layouts.Count * layouts.Count} pairs.

            | saved \ loaded | {string.Join(" | ", layouts.Select(layout => layout.Name))} |
            |---|{string.Concat(layouts.Select(_ => "---|"))}
            {rows}
            """).ReplaceLineEndings("\n").TrimEnd() + "\n");
    }

    /// <summary>Each layout is trained and saved once.</summary>
    public sealed class Runs : IDisposable
    {
        private readonly TemporaryFolder folder = new();
        private readonly ConcurrentDictionary<string, Lazy<LayoutResult>> whole = [];
        private readonly ConcurrentDictionary<string, Lazy<StoredCheckpoint>> saved = [];

        /// <summary>Ten steps without interruption.</summary>
        public LayoutResult Whole(ParityCell layout) =>
            whole.GetOrAdd(layout.Name, _ => new Lazy<LayoutResult>(() => Run(layout, new RunPart(0, 10, null, null)))).Value;

        /// <summary>Losses of steps 6 to 10, loaded in another layout.</summary>
        public double[] LossesAfterLoad(ParityCell from, ParityCell to) => Run(to, new RunPart(5, 10, Saved(from), null)).Losses;

        /// <summary>Largest relative deviation after the load: from one rank, or, in the same layout, from the same run without interruption.</summary>
        public double Continue(ParityCell from, ParityCell to)
        {
            var actual = LossesAfterLoad(from, to);
            var expected = Whole(from == to ? from : oneRank).Losses[5..];
            Assert.Equal(expected.Length, actual.Length);
            return expected.Zip(actual, (wanted, found) => Math.Abs(found - wanted) / wanted).Max();
        }

        public void Dispose() => folder.Dispose();

        private StoredCheckpoint Saved(ParityCell layout) => saved.GetOrAdd(layout.Name, name => new Lazy<StoredCheckpoint>(() =>
        {
            var root = folder.Combine(name.Replace(' ', '-').Replace(',', '-'));
            Run(layout, new RunPart(0, 5, null, root));
            return new CheckpointStore(root, TimeProvider.System).FindNewestVerified(CheckpointVerification.Full).Found ?? throw new InvalidOperationException($"{name} saved nothing");
        })).Value;

        private static LayoutResult Run(ParityCell layout, RunPart part) =>
            LayoutRun.Run(Model, layout.Config with { MicroBatchSize = 1 }, layout.Ranks, perTokenLoss: true, part);
    }
}
