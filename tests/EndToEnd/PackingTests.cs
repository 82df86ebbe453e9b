using Megatron.Client.Cli;

namespace Megatron.EndToEnd.Tests;

/// <summary>Packing, epochs and row layout from the command line, on one rank and on several: the losses agree.</summary>
public sealed class PackingTests(PackingTests.OneRank reference) : IClassFixture<PackingTests.OneRank>
{
    [Fact]
    public void Sft_Packing_TellsPacksAndLength()
    {
        Assert.Contains("packing: 60 samples in ", reference.Result.Output);
        Assert.Contains("max_epochs = 2: ", reference.Result.Output);
        Assert.Contains("validation loss", reference.Result.Output);
    }

    [Theory]
    [InlineData(2)]
    [InlineData(4, "--tensor_model_parallel_size", "2", "--pipeline_model_parallel_size", "2", "--sequence_parallel", "true")]
    [InlineData(2, "--pipeline_model_parallel_size", "2", "--row_padding_multiple", "1")]
    [InlineData(2, "--context_parallel_size", "2", "--cp_comm_type", "a2a")]
    [InlineData(4, "--context_parallel_size", "2", "--tensor_model_parallel_size", "2", "--sequence_parallel", "true", "--row_padding_multiple", "1")]
    public async Task Sft_PackingOnSeveralRanks_HasTheLossesOfOne(int ranks, params string[] layout)
    {
        var result = await reference.TrainAsync($"ranks{ranks}{layout.Length}", ranks, layout);
        var losses = RunFiles.Losses(result.RunFolder);
        Assert.Equal(reference.Losses.Length, losses.Length);
        for (var i = 0; i < losses.Length; i++) Assert.Equal(reference.Losses[i], losses[i], 1e-4);
    }

    [Fact]
    public async Task Pt_Packing_Trains()
    {
        var text = reference.Work.Path("text.txt");
        File.WriteAllLines(text, Enumerable.Range(0, 80).Select(i => $"Line {i} of a book about {i % 7} whales."));
        var result = await CommandLine.RunAsync(
            "pt", "--model", reference.Work.Model, "--dataset", text, "--save", reference.Work.Path("pt"), "--packing", "--packing_length", "64", "--max_length", "64",
            "--max_epochs", "1", "--global_batch_size", "4", "--split_dataset_ratio", "0", "--eval_iters", "0", "--log_interval", "1");
        result.Expect(ExitCode.Ok);
        Assert.Contains("packing: 80 samples in ", result.Output);
    }

    /// <summary>A workspace and the run of one rank that the others are compared with.</summary>
    public sealed class OneRank : IAsyncLifetime
    {
        internal Workspace Work { get; } = new(rows: 60);

        internal CommandResult Result { get; private set; } = new(-1, "", "");

        internal double[] Losses { get; private set; } = [];

        public async ValueTask InitializeAsync()
        {
            Result = await TrainAsync("one", ranks: 1);
            Losses = RunFiles.Losses(Result.RunFolder);
        }

        public ValueTask DisposeAsync()
        {
            Work.Dispose();
            return ValueTask.CompletedTask;
        }

        /// <summary>Two epochs of packs.</summary>
        internal async Task<CommandResult> TrainAsync(string save, int ranks, params string[] layout)
        {
            var words = Work.Training(save, ["--packing", "--packing_length", "128", "--max_epochs", "2", "--micro_batch_size", "2", "--val_dataset", Work.Rows + "#8", "--eval_iters", "-1", .. layout]);
            return (await CommandLine.RunAsync(words, ranks)).Expect(ExitCode.Ok);
        }
    }
}
