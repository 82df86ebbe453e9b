using Megatron.Client.Cli;
using Megatron.Compute.Checkpointing;

namespace Megatron.EndToEnd.Tests;

/// <summary>A run that goes on in another layout, from the command line; every pair of layouts is measured by the parity tests.</summary>
public sealed class ReshardingTests
{
    [Fact]
    public async Task Load_InOtherLayouts_ContinuesTheTrajectoryOfOneRank()
    {
        using var work = new Workspace(rows: 100, layers: 4, hidden: 64);
        string[] words = ["--train_iters", "8", "--micro_batch_size", "1", "--save_interval", "4"];
        var whole = RunFiles.Losses((await work.TrainAsync("whole", words)).RunFolder);
        var saved = (await CommandLine.RunAsync(
            work.Training("saved", [.. words, "--tensor_model_parallel_size", "2", "--sequence_parallel", "true", "--pipeline_model_parallel_size", "2", "--async_save"]), ranks: 8)).Expect(ExitCode.Ok).RunFolder;
        foreach (var (name, ranks, options) in new (string, int, string[])[]
        {
            ("one", 1, []), ("pipeline", 2, ["--pipeline_model_parallel_size", "2", "--virtual_pipeline_model_parallel_size", "2"]), ("context", 4, ["--context_parallel_size", "2"]),
        })
        {
            var run = (await CommandLine.RunAsync(work.Training(name, [.. words, .. options, "--load", Path.Combine(saved, CheckpointStore.FolderName(4))]), ranks)).Expect(ExitCode.Ok).RunFolder;
            var losses = RunFiles.Losses(run);
            Assert.Equal(4, losses.Length);
            foreach (var (expected, actual) in whole[4..].Zip(losses)) Assert.InRange(Math.Abs(actual - expected) / expected, 0, 1e-4);
        }
    }
}
