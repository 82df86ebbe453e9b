using Megatron.Client.Cli;

namespace Megatron.EndToEnd.Tests;

/// <summary>Streams and exact continuation from the command line: the losses of an interrupted run are those of the whole one.</summary>
public sealed class StreamTrainingTests : IDisposable
{
    private readonly Workspace work = new(rows: 150);

    public void Dispose() => work.Dispose();

    [Theory]
    [InlineData("--streaming")]
    [InlineData("--streaming", "--packing", "--packing_length", "128")]
    [InlineData("--packing", "--packing_length", "128")]
    [InlineData("--lazy_tokenize", "--num_workers", "0")]
    public async Task Sft_StoppedInTheMiddleAndResumed_HasTheLossesOfTheWholeRun(params string[] options)
    {
        string[] all = ["--micro_batch_size", "2", "--global_batch_size", "4", "--lr_decay_iters", "12", "--shuffle_buffer_size", "40", .. options];
        var whole = await work.TrainAsync("whole", [.. all, "--train_iters", "12"]);
        var first = await work.TrainAsync("first", [.. all, "--train_iters", "7"]);
        var rest = await work.TrainAsync("rest", [.. all, "--train_iters", "12", "--load", first.RunFolder]);
        Assert.Equal(RunFiles.Losses(whole.RunFolder), (double[])[.. RunFiles.Losses(first.RunFolder), .. RunFiles.Losses(rest.RunFolder)]);
        Assert.Contains("waited for data: ", whole.Output);

        // The same batches on two ranks from the same checkpoint.
        var two = (await CommandLine.RunAsync(work.Training("two", [.. all, "--train_iters", "12", "--load", first.RunFolder]), ranks: 2)).Expect(ExitCode.Ok);
        foreach (var (expected, actual) in RunFiles.Losses(rest.RunFolder).Zip(RunFiles.Losses(two.RunFolder))) Assert.Equal(expected, actual, 1e-4);
    }

    [Fact]
    public async Task Sft_StreamOnFourRanks_HasTheLossesOfOne()
    {
        string[] options = ["--streaming", "--train_iters", "4", "--micro_batch_size", "2", "--val_dataset", work.Rows + "#8", "--eval_iters", "-1"];
        var one = await work.TrainAsync("one", options);
        var four = (await CommandLine.RunAsync(work.Training("four", [.. options, "--pipeline_model_parallel_size", "2"]), ranks: 4)).Expect(ExitCode.Ok);
        foreach (var (expected, actual) in RunFiles.Losses(one.RunFolder).Zip(RunFiles.Losses(four.RunFolder))) Assert.Equal(expected, actual, 1e-4);
    }

    [Theory]
    [InlineData("CFG006", "--max_epochs = 1", "--max_epochs", "1", "--train_iters", "2")]
    [InlineData("CFG006", "--dataloader_type = single", "--dataloader_type", "single", "--train_iters", "2")]
    [InlineData("CFG006", "--split_dataset_ratio = 0.5", "--split_dataset_ratio", "0.5", "--train_iters", "2")]
    [InlineData("CFG006", "--lazy_tokenize", "--lazy_tokenize", "--train_iters", "2")]
    [InlineData("CFG006", "--train_iters", "--lr", "1e-3")]
    public async Task Sft_OptionThatDoesNotGoWithAStream_IsRefused(string code, string says, params string[] options)
    {
        var result = (await CommandLine.RunAsync(work.Training("out", ["--streaming", .. options]))).Expect(ExitCode.BadInput);
        Assert.Contains(code, result.Error);
        Assert.Contains(says, result.Error);
    }
}
