using System.Globalization;
using System.Text;
using Megatron.Client.Cli;
using Megatron.Compute.Checkpointing;
using Megatron.Testing;

namespace Megatron.EndToEnd.Tests;

/// <summary>
/// Any layout into any layout, optimizer included: five steps in one layout, a checkpoint, five more in another, from the command line. Oracle: one
/// rank without interruption; in the same layout the same bits.
/// </summary>
public sealed class ReshardingTests(ReshardingTests.Runs runs) : IClassFixture<ReshardingTests.Runs>
{
    private const double LossTolerance = 1e-4;
    private const string SectionTitle = "## Checkpoints into other layouts";

    /// <summary>A layout: its name, ranks and options.</summary>
    public sealed record Layout(string Name, int Ranks, params string[] Options)
    {
        public static IReadOnlyList<Layout> All { get; } =
        [
            new("one rank", 1),
            new("tp2", 2, "--tensor_model_parallel_size", "2"),
            new("tp2+sp", 2, "--tensor_model_parallel_size", "2", "--sequence_parallel", "true"),
            new("pp2", 2, "--pipeline_model_parallel_size", "2"),
            new("pp4", 4, "--pipeline_model_parallel_size", "4"),
            new("pp2 x vp2", 2, "--pipeline_model_parallel_size", "2", "--virtual_pipeline_model_parallel_size", "2"),
            new("dp2", 2, "--use_distributed_optimizer", "false"),
            new("dp2, zero-1", 2, "--use_distributed_optimizer", "true"),
            new("dp4, zero-1", 4, "--use_distributed_optimizer", "true"),
            new("tp2 x pp2", 4, "--tensor_model_parallel_size", "2", "--pipeline_model_parallel_size", "2"),
            new("pp2 x dp2, zero-1", 4, "--pipeline_model_parallel_size", "2", "--use_distributed_optimizer", "true"),
            new("tp2+sp x dp2", 4, "--tensor_model_parallel_size", "2", "--sequence_parallel", "true", "--use_distributed_optimizer", "false"),
            new("tp2+sp x pp2 x dp2, zero-1", 8, "--tensor_model_parallel_size", "2", "--sequence_parallel", "true", "--pipeline_model_parallel_size", "2", "--use_distributed_optimizer", "true"),
        ];

        public static Layout Of(string name) => All.Single(layout => layout.Name == name);
    }

    /// <summary>What runs in CI.</summary>
    public static TheoryData<string, string> FixedSubset => new()
    {
        { "tp2+sp x pp2 x dp2, zero-1", "one rank" },
        { "tp2+sp x pp2 x dp2, zero-1", "pp2 x vp2" },
        { "pp2 x vp2", "dp4, zero-1" },
        { "dp2", "tp2 x pp2" },
        { "dp4, zero-1", "dp4, zero-1" },
        { "one rank", "tp2+sp x pp2 x dp2, zero-1" },
    };

    [Theory, MemberData(nameof(FixedSubset))]
    public async Task Load_InAnotherLayout_ContinuesTheTrajectoryOfOneRank(string from, string to)
    {
        var deviation = await runs.ContinueAsync(Layout.Of(from), Layout.Of(to));
        if (from == to) Assert.Equal(0, deviation);
        Assert.InRange(deviation, 0, LossTolerance);
    }

    [Theory]
    [InlineData("dp2, zero-1", "dp4, zero-1")]
    [InlineData("dp4, zero-1", "one rank")]
    [InlineData("one rank", "dp2")]
    public async Task Load_OtherNumberOfReplicasWithLogicalShards_HasTheSameBits(string from, string to)
    {
        string[] shards = ["--logical_data_shards", "4"];
        var whole = await runs.WholeAsync(Layout.Of("one rank"), shards);
        Assert.Equal(whole.Losses[5..], await runs.LossesAfterLoadAsync(Layout.Of(from), Layout.Of(to), shards));
    }

    /// <summary>Every pair; writes its section of <c>docs/parity.md</c>. Started by <c>./megatron test --matrix</c>.</summary>
    [Fact, Trait("Category", "matrix")]
    public async Task EveryPair_IsWithinTolerance()
    {
        var (table, failures) = (new StringBuilder(), new List<string>());
        foreach (var from in Layout.All)
        {
            table.Append(CultureInfo.InvariantCulture, $"| {from.Name} |");
            foreach (var to in Layout.All)
            {
                var deviation = await runs.ContinueAsync(from, to);
                table.Append(CultureInfo.InvariantCulture, $" {(from == to && deviation == 0 ? "same bits" : deviation.ToString("0.0e+0", CultureInfo.InvariantCulture))} |");
                if (deviation > LossTolerance || (from == to && deviation != 0)) failures.Add($"{from.Name} into {to.Name}: {deviation:E2}");
            }
            table.Append('\n');
        }
        WriteSection(table.ToString());
        Assert.True(failures.Count == 0, string.Join('\n', failures));
    }

    private static void WriteSection(string rows)
    {
        var path = Path.Combine(Repository.Root, "docs", "parity.md");
        var text = File.ReadAllText(path);
        var begin = text.IndexOf(SectionTitle, StringComparison.Ordinal);
        var before = (begin < 0 ? text : text[..begin]).TrimEnd();
        File.WriteAllText(path, string.Create(CultureInfo.InvariantCulture, $"""
            {before}

            {SectionTitle}

            Rows saved, columns loaded: five steps in the one layout, a checkpoint with optimizer state, five more steps in the other, by
            `megatron sft` in fp32 on a CPU. Shown is the largest relative deviation of the last five losses from one rank without interruption
            (allowed: {LossTolerance:0e+0}); on the diagonal "same bits" means equal, bit for bit, to the same layout without interruption.
            {Layout.All.Count * Layout.All.Count} pairs.

            | saved \ loaded | {string.Join(" | ", Layout.All.Select(layout => layout.Name))} |
            |---|{string.Concat(Layout.All.Select(_ => "---|"))}
            {rows}
            """).ReplaceLineEndings("\n").TrimEnd() + "\n");
    }

    /// <summary>A model, data, and the runs that were made on them; each layout is trained once.</summary>
    public sealed class Runs : IDisposable
    {
        private readonly Workspace work = new(rows: 100, layers: 4, hidden: 64);
        private readonly Dictionary<string, (string Folder, double[] Losses)> whole = [];
        private int next;

        /// <summary>Ten steps without interruption; the folder holds iteration 5.</summary>
        public async Task<(string Folder, double[] Losses)> WholeAsync(Layout layout, params string[] more)
        {
            var key = $"{layout.Name} {string.Join(' ', more)}";
            if (whole.TryGetValue(key, out var known)) return known;
            var folder = await TrainAsync(layout, ["--save_interval", "5", .. more]);
            return whole[key] = (folder, RunFiles.Losses(folder));
        }

        /// <summary>Losses of iterations 6 to 10, loaded in another layout.</summary>
        public async Task<double[]> LossesAfterLoadAsync(Layout from, Layout to, params string[] more)
        {
            var (folder, _) = await WholeAsync(from, more);
            var loaded = await TrainAsync(to, ["--save_interval", "100", "--load", Path.Combine(folder, CheckpointStore.FolderName(5)), .. more]);
            var losses = RunFiles.Losses(loaded);
            Directory.Delete(loaded, recursive: true);
            return losses;
        }

        /// <summary>Largest relative deviation after the load: from one rank, or, in the same layout, from the same run without interruption.</summary>
        public async Task<double> ContinueAsync(Layout from, Layout to)
        {
            var actual = await LossesAfterLoadAsync(from, to);
            var expected = (await WholeAsync(from == to ? from : Layout.All[0])).Losses[5..];
            Assert.Equal(expected.Length, actual.Length);
            return expected.Zip(actual, (wanted, found) => Math.Abs(found - wanted) / wanted).Max();
        }

        public void Dispose() => work.Dispose();

        private async Task<string> TrainAsync(Layout layout, string[] options)
        {
            string[] words = ["--train_iters", "10", "--micro_batch_size", "1", "--lr_warmup_iters", "2", .. layout.Options, .. options];
            return (await CommandLine.RunAsync(work.Training($"run{next++}", words), ranks: layout.Ranks)).Expect(ExitCode.Ok).RunFolder;
        }
    }
}
