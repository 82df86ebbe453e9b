using Megatron.Client.Cli;

namespace Megatron.EndToEnd.Tests;

/// <summary><c>megatron data</c>, and training on what it prepared.</summary>
public sealed class DataCommandTests : IDisposable
{
    private readonly Workspace work = new(rows: 60);

    public void Dispose() => work.Dispose();

    [Fact]
    public async Task Prepare_ThenSft_UsesThePreparedData()
    {
        var cache = work.Path("cache");
        var prepared = (await CommandLine.RunAsync("data", "prepare", "--model", work.Model, "--dataset", work.Rows, "--dataset_cache_dir", cache, "--dataset_num_proc", "2")).Expect(ExitCode.Ok);
        Assert.Contains($"prepared below {cache}", prepared.Output);
        var folder = Assert.Single(Directory.GetDirectories(cache));
        var trained = await work.TrainAsync("out", "--train_iters", "2", "--dataset_cache_dir", cache);
        Assert.Contains("prepared data of an earlier start are used again", trained.Output);
        Assert.Equal([folder], Directory.GetDirectories(cache));
        var anew = await work.TrainAsync("anew", "--train_iters", "2", "--dataset_cache_dir", cache, "--load_from_cache_file", "false");
        Assert.DoesNotContain("used again", anew.Output);
        Assert.Equal(RunFiles.Losses(trained.RunFolder), RunFiles.Losses(anew.RunFolder));
    }

    [Fact]
    public async Task Inspect_ShowsSamplesWithMasks()
    {
        var result = (await CommandLine.RunAsync("data", "inspect", "--model", work.Model, "--dataset", work.Rows, "--show_samples", "2", "--dataset_cache_dir", work.Path("cache"))).Expect(ExitCode.Ok);
        Assert.Equal(2, result.Output.Split('\n').Count(line => line.StartsWith("[LABELS] [-100 *")));
    }

    [Fact]
    public async Task Stats_WritesHistogramAndReport()
    {
        var report = work.Path("report", "data.html");
        var result = (await CommandLine.RunAsync(
            "data", "stats", "--model", work.Model, "--dataset", work.Rows, "--report_path", report, "--packing", "--packing_length", "128", "--dataset_cache_dir", work.Path("cache"))).Expect(ExitCode.Ok);
        Assert.Contains("59 samples, ", result.Output); // one of 60 rows is split off
        Assert.Contains("| ##", result.Output);
        Assert.Contains("packing: ", result.Output);
        var html = File.ReadAllText(report);
        Assert.Contains("<span class=\"learned\">", html);
        Assert.Contains("data.png", html);
        Assert.Equal([0x89, (byte)'P', (byte)'N', (byte)'G'], File.ReadAllBytes(work.Path("report", "data.png"))[..4]);
    }

    [Fact]
    public async Task WordThatIsNoAction_IsRefused()
    {
        var result = (await CommandLine.RunAsync("data", "cook")).Expect(ExitCode.BadInput);
        Assert.Contains("CFG013 megatron data cook is not known; write megatron data prepare, inspect or stats.", result.Error);
    }

    [Fact]
    public async Task Prepare_Stream_IsRefused()
    {
        var result = (await CommandLine.RunAsync("data", "prepare", "--model", work.Model, "--dataset", work.Rows, "--streaming", "--train_iters", "2")).Expect(ExitCode.BadInput);
        Assert.Contains("CFG006 --streaming = true does not go with megatron data", result.Error);
    }

    [Theory]
    [InlineData("--lazy_tokenize")]
    [InlineData("--dataloader_type", "external")]
    public async Task Sft_OrderAndEncodingOptions_Train(params string[] options) => await work.TrainAsync("out", ["--train_iters", "2", .. options]);

    [Fact]
    public async Task Sft_Interleaved_TellsTheMix()
    {
        var result = await work.TrainAsync(
            "out", "--train_iters", "2", "--dataset", work.Rows + "#30", work.Rows + "#20", "--interleave_prob", "0.5", "0.3", "0.2", "--stopping_strategy", "all_exhausted");
        Assert.Contains("interleaved by probability until every set was used up", result.Output);
    }
}
