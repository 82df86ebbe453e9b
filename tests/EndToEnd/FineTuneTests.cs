using System.Text.Json;
using Megatron.Client.Cli;
using Megatron.Compute.Checkpointing;

namespace Megatron.EndToEnd.Tests;

/// <summary>Fine-tuning and pre-training from the command line: losses, files, the args.json chain.</summary>
public sealed class FineTuneTests
{
    [Fact]
    public async Task Sft_200Rows_LossFallsAndTheResultExportsAndLoadsAgain()
    {
        using var work = new Workspace();
        var run = await work.TrainAsync("out", "--train_iters", "40", "--split_dataset_ratio", "0.05", "--eval_iters", "2", "--eval_interval", "20",
            "--save_interval", "20", "--system", "Answer briefly.", "--lr_warmup_fraction", "0.1", "--lr", "5e-3");
        var folder = run.RunFolder;
        var losses = RunFiles.Losses(folder);
        Print($"loss {losses[0]:F4} at iteration 1, {losses[^1]:F4} at iteration {losses.Length}");
        Assert.Equal(40, losses.Length);
        Assert.True(losses[^1] < 0.6 * losses[0], $"{losses[0]} -> {losses[^1]}");

        Assert.Equal(["iter_0000020", "iter_0000040"], Directory.GetDirectories(folder, "iter_*").Select(Path.GetFileName).Order());
        Assert.Equal("40", (await File.ReadAllTextAsync(Path.Combine(folder, "latest_checkpointed_iteration.txt"), TestContext.Current.CancellationToken)).Trim());
        Assert.Equal(10, File.ReadLines(Path.Combine(folder, "val_dataset.jsonl")).Count());
        Assert.Contains("\"role\":\"assistant\"", File.ReadLines(Path.Combine(folder, "val_dataset.jsonl")).First(), StringComparison.Ordinal);
        Assert.Contains(" validation loss at iteration 20 | lm loss value: ", run.Output, StringComparison.Ordinal);
        Assert.Contains(" validation loss at iteration 40 on validation set | lm loss value: ", run.Output, StringComparison.Ordinal);
        Assert.Equal(["20/40", "40/40"], RunFiles.Log(folder, "eval_lm loss").Select(row => row.GetProperty("global_step/max_steps").GetString()));
        Assert.Equal(
            ["lm loss", "grad_norm", "learning_rate", "elapsed_time_per_iteration", "throughput", "loss_scale", "consumed_samples", "global_step/max_steps"],
            RunFiles.Log(folder, "lm loss")[0].EnumerateObject().Select(property => property.Name));
        Assert.Single(Directory.GetFiles(Path.Combine(folder, "runs"), "events.out.tfevents.*"));

        // The chain: the export of the run knows its template and system prompt, and so does a training of the export.
        var exported = work.Path("exported");
        (await CommandLine.RunAsync("export", "--to_hf", "--mcore_model", folder, "--output_dir", exported)).Expect(ExitCode.Ok);
        foreach (var name in new[] { "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "args.json", "model.safetensors" })
            Assert.True(File.Exists(Path.Combine(exported, name)), name);
        var again = (await CommandLine.RunAsync("sft", "--model", exported, "--dataset", work.Rows, "--save", work.Path("again"), "--global_batch_size", "8",
            "--train_iters", "2", "--log_interval", "1", "--lr", "1e-4", "--eval_iters", "0")).Expect(ExitCode.Ok);
        Assert.InRange(RunFiles.Losses(again.RunFolder)[0], 0.5 * losses[^1], 1.5 * losses[^1]);
        Assert.Equal("Answer briefly.", Args(again.RunFolder).GetProperty("system").GetString());
        Assert.Equal(Args(folder).GetProperty("template").GetString(), Args(again.RunFolder).GetProperty("template").GetString());
    }

    [Fact]
    public async Task Pt_TextRows_TrainsOnEveryToken()
    {
        using var work = new Workspace(rows: 1);
        var text = work.Path("text.txt");
        await File.WriteAllLinesAsync(text, Enumerable.Range(0, 60).Select(i => $"The number {i} comes before the number {i + 1}."), TestContext.Current.CancellationToken);
        var run = (await CommandLine.RunAsync("pt", "--model", work.Model, "--dataset", text, "--save", work.Path("out"), "--global_batch_size", "4", "--max_epochs", "1",
            "--log_interval", "1", "--lr", "1e-3", "--split_dataset_ratio", "0.05")).Expect(ExitCode.Ok);
        var losses = RunFiles.Losses(run.RunFolder);
        Assert.True(losses[^1] < losses[0] - 0.5, $"{losses[0]} -> {losses[^1]}");
        Assert.Contains("[LABELS]", run.Output, StringComparison.Ordinal);
        // Only the last position has nothing to predict.
        Assert.Equal(1, run.Output.Split("[-100 * ").Length - 1);
        Assert.Contains("[-100 * 1]\n", run.Output, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("bfloat16")]
    [InlineData("float16")]
    public async Task Sft_16BitTypes_LossFallsAndOverflowsAreSkipped(string dtype)
    {
        using var work = new Workspace();
        var run = await work.TrainAsync("out", "--train_iters", "40", "--torch_dtype", dtype, "--initial_loss_scale", "16777216", "--hysteresis", "1", "--lr", "3e-3");
        var rows = RunFiles.Log(run.RunFolder, "lm loss");
        var losses = rows.Select(row => row.GetProperty("lm loss")).Where(value => value.ValueKind == JsonValueKind.Number).Select(value => value.GetDouble()).ToArray();
        Print($"{dtype}: loss {losses[0]:F4} -> {losses[^1]:F4}, loss scale {rows[0].GetProperty("loss_scale")} -> {rows[^1].GetProperty("loss_scale")}");
        Assert.True(losses[^1] < 0.7 * losses[0], $"{losses[0]} -> {losses[^1]}");
        var isSkipped = run.Output.Contains("number of skipped iterations:   1", StringComparison.Ordinal);
        Assert.Equal(dtype == "float16", isSkipped);
        if (dtype == "float16") Assert.True(rows[^1].GetProperty("loss_scale").GetDouble() < 16777216);
        using var weights = HfWeightFolder.Open(Directory.GetDirectories(run.RunFolder, "iter_*").Single());
        Assert.Equal(dtype == "float16" ? SafetensorsDType.F16 : SafetensorsDType.BF16, weights.Entry("model.norm.weight").DType);
    }

    [Fact]
    public async Task Chain_ExportThenLoadWithoutModel_CarriesTemplateSystemAndDtype()
    {
        using var work = new Workspace(rows: 32);
        var mcore = work.Path("mcore");
        (await CommandLine.RunAsync("export", "--to_mcore", "--model", work.Model, "--output_dir", mcore, "--torch_dtype", "bfloat16", "--system", "Be exact.",
            "--template", "qwen3")).Expect(ExitCode.Ok);
        var run = (await CommandLine.RunAsync("sft", "--load", mcore, "--finetune", "--dataset", work.Rows, "--save", work.Path("out"), "--global_batch_size", "8",
            "--train_iters", "3", "--log_interval", "1", "--eval_iters", "0")).Expect(ExitCode.Ok);
        foreach (var args in new[] { Args(mcore), Args(run.RunFolder) })
        {
            Assert.Equal("qwen3", args.GetProperty("template").GetString());
            Assert.Equal("Be exact.", args.GetProperty("system").GetString());
            Assert.Equal("bfloat16", args.GetProperty("torch_dtype").GetString());
        }
        Assert.Contains("(weights only)", run.Output, StringComparison.Ordinal);
        var hf = work.Path("hf");
        (await CommandLine.RunAsync("export", "--to_hf", "--mcore_model", run.RunFolder, "--output_dir", hf)).Expect(ExitCode.Ok);
        Assert.Equal("qwen3", Args(hf).GetProperty("template").GetString());
        Assert.Equal("Be exact.", Args(hf).GetProperty("system").GetString());
        Assert.Equal("bfloat16", Args(hf).GetProperty("torch_dtype").GetString());
    }

    [Fact]
    public async Task Load_WeightsOnlyCheckpointWithoutFinetune_SaysWhatToGive()
    {
        using var work = new Workspace(rows: 32);
        var mcore = work.Path("mcore");
        (await CommandLine.RunAsync("export", "--to_mcore", "--model", work.Model, "--output_dir", mcore)).Expect(ExitCode.Ok);
        string[] words = ["sft", "--load", mcore, "--dataset", work.Rows, "--save", work.Path("out"), "--global_batch_size", "8", "--train_iters", "3", "--eval_iters", "0"];
        var refused = (await CommandLine.RunAsync(words)).Expect(ExitCode.BadInput);
        Assert.Contains("CKPT030", refused.Error, StringComparison.Ordinal);
        Assert.Contains("--finetune true or --no_load_optim true", refused.Error, StringComparison.Ordinal);
        Assert.False(Directory.Exists(work.Path("out")));
        (await CommandLine.RunAsync([.. words, "--no_load_optim"])).Expect(ExitCode.Ok);
    }

    [Fact]
    public async Task Options_OfLoggingAndSaving_AreObeyed()
    {
        using var work = new Workspace(rows: 40);
        var run = await work.TrainAsync("out", "--train_iters", "6", "--save_interval", "1", "--save_total_limit", "2", "--log_params_norm", "--log_throughput", "false",
            "--report_to", "none", "--no_save_optim", "--add_version", "false");
        Assert.Equal(work.Path("out"), run.RunFolder);
        Assert.Equal(["iter_0000005", "iter_0000006"], Directory.GetDirectories(run.RunFolder, "iter_*").Select(Path.GetFileName).Order());
        Assert.Contains(" | params norm: ", run.Output, StringComparison.Ordinal);
        Assert.DoesNotContain("TFLOP/s", run.Output, StringComparison.Ordinal);
        Assert.True(RunFiles.Log(run.RunFolder, "params_norm")[0].GetProperty("params_norm").GetDouble() > 1);
        Assert.False(Directory.Exists(Path.Combine(run.RunFolder, "runs")));
        var missing = (await CommandLine.RunAsync(work.Training("next", "--load", run.RunFolder, "--train_iters", "8"))).Expect(ExitCode.BadInput);
        Assert.Contains("holds weights only, no optimizer state", missing.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task DryRun_PrintsThePlanAndWritesNothing()
    {
        using var work = new Workspace(rows: 40);
        var run = await work.TrainAsync("out", "--max_epochs", "2", "--dry_run");
        Assert.Contains("plan: 10 iterations of 8 samples on 1 rank(s)", run.Output, StringComparison.Ordinal);
        Assert.Contains("\"micro_batch_size\": 4", run.Output, StringComparison.Ordinal);
        Assert.False(Directory.Exists(work.Path("out")));
    }

    [Fact]
    public async Task DryRun_WithPipeline_DrawsTheScheduleAndItsBubble()
    {
        using var work = new Workspace(rows: 40);
        var run = (await CommandLine.RunAsync(
            work.Training("out", "--train_iters", "2", "--micro_batch_size", "2", "--pipeline_model_parallel_size", "2", "--dry_run"), ranks: 2)).Expect(ExitCode.Ok);
        Assert.Contains("pipeline: 2 stages, 4 micro-batches, bubble ", run.Output, StringComparison.Ordinal);
        Assert.Contains("  stage 0  F0 F1 ", run.Output, StringComparison.Ordinal);
        Assert.Contains("  stage 1  .  F0 B0 ", run.Output, StringComparison.Ordinal);
        Assert.False(Directory.Exists(work.Path("out")));
    }

    [Fact]
    public async Task OutputJson_IsOneObjectPerLine()
    {
        using var work = new Workspace(rows: 40);
        var run = await work.TrainAsync("out", "--train_iters", "3", "--output", "json");
        var events = run.Output.Split('\n', StringSplitOptions.RemoveEmptyEntries).Select(line => JsonSerializer.Deserialize<JsonElement>(line)).ToList();
        Assert.Equal([1, 2, 3], events.Where(item => item.GetProperty("event").GetString() == "step").Select(item => item.GetProperty("iteration").GetInt32()));
        Assert.Equal(0, events.Last(item => item.GetProperty("event").GetString() == "phase").GetProperty("exit_code").GetInt32());
        Assert.Equal(3, RunFiles.Losses(Directory.GetDirectories(work.Path("out")).Single()).Length);
    }

    private static JsonElement Args(string folder) => JsonSerializer.Deserialize<JsonElement>(File.ReadAllText(Path.Combine(folder, "args.json")));

    private static void Print(FormattableString line) => TestContext.Current.TestOutputHelper?.WriteLine(FormattableString.Invariant(line));
}
