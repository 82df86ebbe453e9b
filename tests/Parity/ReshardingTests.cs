using System.Collections.Concurrent;
using System.Globalization;
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

    private static readonly ParityCell oneRank = new("one rank", 1, new TrainingConfig { UseDistributedOptimizer = false });

    private static readonly ReshardingTable dense = TableOf(
        "## Checkpoints into other layouts", "qwen3-dense",
        "tp2", "tp4+sp", "pp4", "pp2 x vp2", "pp3, last stage 2 layers", "cp2 ring", "cp2 x dp2, distributed optimizer", "tp2+sp x cp2", "dp2", "dp2, distributed optimizer",
        "dp4, distributed optimizer", "tp2 x pp2", "pp2 x vp2 x dp2", "tp2+sp x pp2 x dp2, distributed optimizer");

    private static readonly ReshardingTable sparse = TableOf(
        "## Checkpoints of experts into other layouts", "qwen3-moe",
        "tp2", "pp4", "dp2, distributed optimizer", "pp2 x dp2, distributed optimizer", "ep2", "ep4", "ep2 x dp4, distributed optimizer", "tp2 x ep2 x dp2",
        "tp2+sp x etp1 x ep4", "tp2+sp x cp2 x ep2", "ep2 x pp2 x dp2", "ep2 x pp2 zero bubble x dp4, distributed optimizer");

    public static TheoryData<string> Models => [dense.Model, sparse.Model];

    /// <summary>What runs in CI: each kind of layout saved once and loaded once.</summary>
    public static TheoryData<string, string, string> FixedSubset => new()
    {
        { dense.Model, "tp2+sp x pp2 x dp2, distributed optimizer", "one rank" },
        { dense.Model, "one rank", "tp2+sp x pp2 x dp2, distributed optimizer" },
        { dense.Model, "tp4+sp", "pp2 x vp2 x dp2" },
        { dense.Model, "pp2 x vp2", "dp4, distributed optimizer" },
        { dense.Model, "dp4, distributed optimizer", "cp2 x dp2, distributed optimizer" },
        { dense.Model, "cp2 x dp2, distributed optimizer", "pp3, last stage 2 layers" },
        { dense.Model, "dp2", "tp2 x pp2" },
        { dense.Model, "dp4, distributed optimizer", "dp4, distributed optimizer" },
        { dense.Model, "tp2+sp x pp2 x dp2, distributed optimizer", "tp2+sp x pp2 x dp2, distributed optimizer" },
        { sparse.Model, "one rank", "ep2" },
        { sparse.Model, "ep2", "ep4" },
        { sparse.Model, "ep2", "tp2" },
        { sparse.Model, "ep2 x pp2 x dp2", "dp2, distributed optimizer" },
        { sparse.Model, "tp2+sp x etp1 x ep4", "ep2 x dp4, distributed optimizer" },
        { sparse.Model, "ep2 x dp4, distributed optimizer", "ep2 x dp4, distributed optimizer" },
    };

    [Theory, MemberData(nameof(FixedSubset))]
    public void Load_InAnotherLayout_ContinuesTheTrajectoryOfOneRank(string model, string from, string to)
    {
        var table = Of(model);
        var deviation = runs.Continue(model, table[from], table[to]);
        if (from == to) Assert.Equal(0, deviation);
        Assert.InRange(deviation, 0, LossTolerance);
    }

    [Theory]
    [InlineData("dp2, distributed optimizer", "dp4, distributed optimizer")]
    [InlineData("dp4, distributed optimizer", "one rank")]
    [InlineData("one rank", "dp2")]
    public void Load_OtherNumberOfReplicasWithLogicalShards_HasTheSameBits(string from, string to)
    {
        ParityCell With(string name) => dense[name] with { Name = name + ", 4 shards", Config = dense[name].Config with { LogicalDataShards = 4 } };
        Assert.Equal(runs.Whole(dense.Model, With("one rank")).Losses[5..], runs.LossesAfterLoad(dense.Model, With(from), With(to)));
    }

    /// <summary>
    /// Every pair; writes the table's section of <c>docs/parity.md</c> after each saved layout. Started by <c>./megatron test Parity --matrix</c>;
    /// <c>PARITY_CELLS</c> picks the saved layouts by how "model: layout" begins.
    /// </summary>
    [Theory, MemberData(nameof(Models)), Trait("Category", "matrix")]
    public void EveryPair_IsWithinTolerance(string model)
    {
        var (table, failures) = (Of(model), new List<string>());
        var page = new ReshardingPage(table);
        foreach (var from in table.Layouts.Where(layout => ParityPage.IsChosen($"{model}: {layout.Name}")))
        {
            page.Set(from, table.Layouts.Select(to =>
            {
                var deviation = runs.Continue(model, from, to);
                if (deviation > LossTolerance || (from == to && deviation != 0)) failures.Add($"{from.Name} into {to.Name}: {deviation:E2}");
                return from == to && deviation == 0 ? "same bits" : deviation.ToString("0.0e+0", CultureInfo.InvariantCulture);
            }));
            page.Write(LossTolerance);
        }
        Assert.True(failures.Count == 0, string.Join('\n', failures));
    }

    private static ReshardingTable Of(string model) => model == dense.Model ? dense : sparse;

    private static ReshardingTable TableOf(string title, string model, params string[] layouts) =>
        new(title, model, [oneRank, .. layouts.Select(name => ParityCell.All.Single(cell => cell.Name == name))]);

    /// <summary>Each layout is trained and saved once.</summary>
    public sealed class Runs : IDisposable
    {
        private readonly TemporaryFolder folder = new();
        private readonly ConcurrentDictionary<(string Model, string Layout), Lazy<LayoutResult>> whole = [];
        private readonly ConcurrentDictionary<(string Model, string Layout), Lazy<StoredCheckpoint>> saved = [];

        /// <summary>Ten steps without interruption.</summary>
        public LayoutResult Whole(string model, ParityCell layout) =>
            whole.GetOrAdd((model, layout.Name), _ => new Lazy<LayoutResult>(() => Run(model, layout, new RunPart(0, 10, null, null)))).Value;

        /// <summary>Losses of steps 6 to 10, loaded in another layout.</summary>
        public double[] LossesAfterLoad(string model, ParityCell from, ParityCell to) => Run(model, to, new RunPart(5, 10, Saved(model, from), null)).Losses;

        /// <summary>Largest relative deviation after the load: from one rank, or, in the same layout, from the same run without interruption.</summary>
        public double Continue(string model, ParityCell from, ParityCell to)
        {
            var actual = LossesAfterLoad(model, from, to);
            var expected = Whole(model, from == to ? from : oneRank).Losses[5..];
            Assert.Equal(expected.Length, actual.Length);
            return expected.Zip(actual, (wanted, found) => Math.Abs(found - wanted) / wanted).Max();
        }

        public void Dispose() => folder.Dispose();

        private StoredCheckpoint Saved(string model, ParityCell layout) => saved.GetOrAdd((model, layout.Name), _ => new Lazy<StoredCheckpoint>(() =>
        {
            var root = folder.Combine(model, layout.Name.Replace(' ', '-').Replace(',', '-'));
            Run(model, layout, new RunPart(0, 5, null, root));
            return new CheckpointStore(root, TimeProvider.System).FindNewestVerified(CheckpointVerification.Full).Found
                ?? throw new InvalidOperationException($"{model} in {layout.Name} saved nothing");
        })).Value;

        private static LayoutResult Run(string model, ParityCell layout, RunPart part) =>
            LayoutRun.Run(model, layout.Config with { MicroBatchSize = 1 }, layout.Ranks, perTokenLoss: true, part);
    }
}

/// <summary>A model and the layouts that each of its checkpoints is saved in and loaded into.</summary>
/// <param name="Title">Heading of its section of <c>docs/parity.md</c>.</param>
/// <param name="Model">Folder below the golden assets.</param>
internal sealed record ReshardingTable(string Title, string Model, IReadOnlyList<ParityCell> Layouts)
{
    /// <summary>The layout of this name.</summary>
    public ParityCell this[string name] => Layouts.Single(layout => layout.Name == name);
}
