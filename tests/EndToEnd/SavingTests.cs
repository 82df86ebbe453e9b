using Megatron.Client.Cli;
using Megatron.Compute.Checkpointing;

namespace Megatron.EndToEnd.Tests;

/// <summary>Checkpoints taken while training goes on, in every form that the options name.</summary>
public sealed class SavingTests
{
    private static readonly string[] Dropout = ["--hidden_dropout", "0.1", "--attention_dropout", "0.1", "--torch_dtype", "bfloat16"];

    [Fact]
    public async Task Save_AtEveryIterationNowOrInTheBackground_NeverChangesALossAndWritesTheSameBytes()
    {
        using var work = new Workspace();
        string[] words = [.. Dropout, "--train_iters", "12"];
        var without = (await work.TrainAsync("without", [.. words, "--save_interval", "100"])).RunFolder;
        var now = (await work.TrainAsync("now", [.. words, "--save_interval", "1"])).RunFolder;
        var background = (await work.TrainAsync("background", [.. words, "--save_interval", "1", "--async_save"])).RunFolder;
        Assert.Equal(RunFiles.Losses(without), RunFiles.Losses(now));
        Assert.Equal(RunFiles.Losses(without), RunFiles.Losses(background));
        for (var iteration = 1; iteration <= 12; iteration++)
        {
            var name = CheckpointStore.FolderName(iteration);
            RunFiles.AssertSame(Path.Combine(now, name), Path.Combine(background, name), "args.json", "manifest.json");
        }
        RunFiles.AssertSame(Path.Combine(without, "iter_0000012"), Path.Combine(background, "iter_0000012"), "args.json", "manifest.json");
        Assert.Empty(Directory.GetDirectories(background, ".*"));
    }

    [Fact]
    public async Task AsyncSave_OnFourRanks_EveryRankWritesAShareAndTheRunResumesBitForBit()
    {
        using var work = new Workspace();
        string[] words = [.. Dropout, "--train_iters", "8", "--save_interval", "4", "--pipeline_model_parallel_size", "2", "--use_distributed_optimizer", "false", "--micro_batch_size", "2"];
        var whole = (await CommandLine.RunAsync(work.Training("whole", [.. words, "--async_save"]), ranks: 4)).Expect(ExitCode.Ok).RunFolder;
        Assert.Equal(4, Directory.GetFiles(Path.Combine(whole, "iter_0000004", "state")).Length);
        var resumed = (await CommandLine.RunAsync(work.Training("resumed", [.. words, "--load", Path.Combine(whole, "iter_0000004")]), ranks: 4)).Expect(ExitCode.Ok).RunFolder;
        Assert.Equal(RunFiles.Losses(whole)[4..], RunFiles.Losses(resumed));
        RunFiles.AssertSame(Path.Combine(whole, "iter_0000008"), Path.Combine(resumed, "iter_0000008"), "args.json", "manifest.json");
    }

    [Fact]
    public async Task SaveSafetensorsFalse_TrainingSlicesOnly_ResumeBitForBitAndExportTheSameModel()
    {
        using var work = new Workspace();
        string[] words = [.. Dropout, "--train_iters", "6", "--save_interval", "3"];
        var full = (await work.TrainAsync("full", words)).RunFolder;
        var slices = (await work.TrainAsync("slices", [.. words, "--save_safetensors", "false"])).RunFolder;
        Assert.Empty(Directory.GetFiles(Path.Combine(slices, "iter_0000003"), "model*"));
        var resumed = (await work.TrainAsync("resumed", [.. words, "--load", Path.Combine(slices, "iter_0000003")])).RunFolder;
        RunFiles.AssertSame(Path.Combine(full, "iter_0000006"), Path.Combine(resumed, "iter_0000006"), "args.json", "manifest.json");
        var crossed = (await CommandLine.RunAsync(work.Training("crossed", [.. words, "--load", Path.Combine(slices, "iter_0000003"), "--tensor_model_parallel_size", "2"]), ranks: 2)).Expect(ExitCode.Ok).RunFolder;
        Assert.Equal(RunFiles.Losses(full)[3], RunFiles.Losses(crossed)[0], RunFiles.Losses(full)[3] * 1e-4);

        foreach (var (run, output) in new[] { (full, "full-hf"), (slices, "slices-hf") })
            (await CommandLine.RunAsync("export", "--to_hf", "--mcore_model", run, "--output_dir", work.Path(output))).Expect(ExitCode.Ok);
        RunFiles.AssertSame(work.Path("full-hf"), work.Path("slices-hf"), "args.json");
        var refused = (await CommandLine.RunAsync("infer", "--model", slices, "--val_dataset", work.Rows)).Expect(ExitCode.BadInput);
        Assert.StartsWith("error: CKPT033 ", refused.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task SaveTotalLimit_NewestDamaged_KeepsWhatTheNextStartNeeds()
    {
        using var work = new Workspace();
        var run = (await work.TrainAsync("run", "--train_iters", "6", "--save_interval", "1", "--save_total_limit", "2", "--async_save")).RunFolder;
        Assert.Equal(["iter_0000005", "iter_0000006"], Directory.GetDirectories(run, "iter_*").Select(path => Path.GetFileName(path)).Order());
        var state = Path.Combine(run, "iter_0000006", "state", "rank-00000.safetensors");
        var bytes = await File.ReadAllBytesAsync(state, TestContext.Current.CancellationToken);
        bytes[^1] ^= 1;
        await File.WriteAllBytesAsync(state, bytes, TestContext.Current.CancellationToken);
        var resumed = await work.TrainAsync("resumed", "--train_iters", "7", "--load", run);
        Assert.Contains("iter_0000006 is passed over", resumed.Output, StringComparison.Ordinal);
        Assert.Contains("1 iterations are lost", resumed.Output, StringComparison.Ordinal);
        Assert.Equal(2, RunFiles.Losses(resumed.RunFolder).Length);

        var verified = (await CommandLine.RunAsync("checkpoint", "verify", run)).Expect(ExitCode.Failed);
        Assert.Contains("iter_0000005: sound", verified.Output, StringComparison.Ordinal);
        Assert.Contains("CKPT022", verified.Error, StringComparison.Ordinal);
        (await CommandLine.RunAsync("checkpoint", "prune", run, "--save_total_limit", "1")).Expect(ExitCode.Ok);
        Assert.Equal(2, Directory.GetDirectories(run, "iter_*").Length); // the older one is the last that verifies
    }

    [Fact]
    public async Task Checkpoint_InspectAndVerify_SayWhatIsThere()
    {
        using var work = new Workspace();
        var run = (await work.TrainAsync("run", "--train_iters", "2", "--save_interval", "1")).RunFolder;
        var listed = (await CommandLine.RunAsync("checkpoint", "inspect", run)).Expect(ExitCode.Ok).Output;
        Assert.Contains("iter_0000001", listed, StringComparison.Ordinal);
        Assert.Contains("iter_0000002", listed, StringComparison.Ordinal);
        var one = (await CommandLine.RunAsync("checkpoint", "inspect", Path.Combine(run, "iter_0000002"))).Expect(ExitCode.Ok).Output;
        foreach (var text in new[] { "iteration 2", "model.embed_tokens.weight", "exp_avg_sq", "state/rank-00000.safetensors" }) Assert.Contains(text, one, StringComparison.Ordinal);
        var sums = (await CommandLine.RunAsync("checkpoint", "verify", Path.Combine(run, "iter_0000002"), "--sha256")).Expect(ExitCode.Ok).Output;
        var expected = Convert.ToHexStringLower(System.Security.Cryptography.SHA256.HashData(await File.ReadAllBytesAsync(Path.Combine(run, "iter_0000002", "model.safetensors"), TestContext.Current.CancellationToken)));
        Assert.Contains($"{expected}  iter_0000002/model.safetensors", sums, StringComparison.Ordinal);

        foreach (var (words, code) in new (string[], string)[]
        {
            (["checkpoint"], "CFG008"), (["checkpoint", "burn", run], "CFG008"), (["checkpoint", "verify"], "CFG008"), (["checkpoint", "verify", work.Path("nowhere")], "CKPT001"),
            (["checkpoint", "verify", run, "--sha1"], "CFG001"), (["checkpoint", "prune", run], "CFG008"), (["checkpoint", "prune", run, "--save_total_limit", "0"], "CFG005"),
            (["checkpoint", "inspect", work.Model], "CKPT002"),
        })
            Assert.StartsWith($"error: {code} ", (await CommandLine.RunAsync(words)).Expect(ExitCode.BadInput).Error, StringComparison.Ordinal);
    }
}
