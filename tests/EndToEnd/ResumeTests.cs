using Megatron.Client.Cli;

namespace Megatron.EndToEnd.Tests;

/// <summary>A run that was interrupted and continued against the same run without interruption.</summary>
public sealed class ResumeTests
{
    private static readonly string[] Dropout = ["--train_iters", "20", "--hidden_dropout", "0.1", "--attention_dropout", "0.1"];

    [Theory]
    [InlineData("float32")]
    [InlineData("bfloat16")]
    [InlineData("float16")]
    public async Task Load_Iteration10Of20WithDropout_EqualsTheUninterruptedRunBitForBit(string dtype)
    {
        using var work = new Workspace();
        string[] words = [.. Dropout, "--torch_dtype", dtype, "--save_interval", "10", "--initial_loss_scale", "65536", "--lr_warmup_iters", "3"];
        var whole = (await work.TrainAsync("whole", words)).RunFolder;
        // A second folder that holds iteration 10 and no more is what a killed run leaves.
        var half = work.Path("half");
        CopyFolder(Path.Combine(whole, "iter_0000010"), Path.Combine(half, "iter_0000010"));
        var resumed = (await work.TrainAsync("resumed", [.. words, "--load", half])).RunFolder;
        Assert.Equal(RunFiles.Losses(whole)[10..], RunFiles.Losses(resumed));
        AssertSameCheckpoint(whole, resumed);

        // The same by --resume, which finds the folder itself.
        Directory.CreateDirectory(work.Path("auto"));
        Directory.Move(half, work.Path("auto", "v0-20250101-000000"));
        var auto = (await work.TrainAsync("auto", [.. words, "--resume"])).RunFolder;
        Assert.StartsWith("v1-", Path.GetFileName(auto), StringComparison.Ordinal);
        AssertSameCheckpoint(whole, auto);
    }

    [Fact]
    public async Task Load_OtherMicroBatchSize_SameLossesTo1e5()
    {
        using var work = new Workspace();
        string[] words = [.. Dropout, "--save_interval", "10"];
        var whole = (await work.TrainAsync("whole", words)).RunFolder;
        var resumed = (await work.TrainAsync("resumed", [.. words, "--micro_batch_size", "2", "--load", Path.Combine(whole, "iter_0000010")])).RunFolder;
        var (expected, actual) = (RunFiles.Losses(whole)[10..], RunFiles.Losses(resumed));
        Assert.Equal(expected.Length, actual.Length);
        foreach (var (left, right) in expected.Zip(actual)) Assert.True(Math.Abs(left - right) <= 1e-5 * left, $"{left} and {right}");
    }

    [Fact]
    public async Task Load_OtherData_IsRefusedByHash()
    {
        using var work = new Workspace();
        var whole = (await work.TrainAsync("whole", "--train_iters", "2")).RunFolder;
        await File.AppendAllTextAsync(work.Rows, await File.ReadAllTextAsync(work.Rows, TestContext.Current.CancellationToken), TestContext.Current.CancellationToken);
        var refused = (await CommandLine.RunAsync(work.Training("resumed", "--train_iters", "4", "--load", whole))).Expect(ExitCode.BadInput);
        Assert.StartsWith("error: DATA030 ", refused.Error, StringComparison.Ordinal);
        Assert.False(Directory.Exists(work.Path("resumed")));
        await work.TrainAsync("resumed", "--train_iters", "4", "--load", whole, "--no_load_rng");
    }

    private static void AssertSameCheckpoint(string expected, string actual) =>
        RunFiles.AssertSame(Path.Combine(expected, "iter_0000020"), Path.Combine(actual, "iter_0000020"), "args.json", "manifest.json");

    private static void CopyFolder(string from, string to)
    {
        foreach (var (name, bytes) in RunFiles.Bytes(from))
        {
            var target = Path.Combine(to, name);
            Directory.CreateDirectory(Path.GetDirectoryName(target) ?? to);
            File.WriteAllBytes(target, bytes);
        }
    }
}
