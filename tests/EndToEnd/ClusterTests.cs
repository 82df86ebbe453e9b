using System.Text.Json;
using Megatron.Client.Cli;
using Megatron.Faults;
using Megatron.Testing;
using Megatron.Testing.Processes;

namespace Megatron.EndToEnd.Tests;

/// <summary>What a user does with a cluster: consoles and silos as processes of their own around a real Redis.</summary>
public sealed class ClusterTests
{
    private static readonly TimeSpan patience = TimeSpan.FromSeconds(90);

    public ClusterTests() => Assert.SkipUnless(RedisServer.IsInstalled, RedisServer.SkipReason);

    private static CancellationToken Cancellation => TestContext.Current.CancellationToken;

    [Fact]
    public async Task Job_OnOneSilo_RunsToItsEndAndIsKnownAfterwards()
    {
        using var work = new Workspace();
        await using var cluster = await ProcessCluster.StartAsync(1, 1, Cancellation);
        await using var console = ConsoleProcess.Start(work.Training("out", "--train_iters", "4", "--cluster", cluster.Address, "--job_id", "tiny"));
        Assert.True(await console.Process.ExitAsync(patience, Cancellation) == ExitCode.Ok, console.Process.Transcript + cluster.Transcript);
        Assert.Equal(4, console.Events.Count(item => ConsoleProcess.IsStep(item, out _)));
        Assert.Equal(4, RunFiles.Losses(work.Path("out", "tiny")).Length);

        async Task<CommandResult> Jobs(params string[] words) => (await CommandLine.RunAsync(["jobs", .. words, "--cluster", cluster.Address])).Expect(ExitCode.Ok);
        Assert.Contains("completed", (await Jobs("show", "tiny")).Output, StringComparison.Ordinal);
        var listed = JsonSerializer.Deserialize<JsonElement>((await Jobs("list", "--output", "json")).Output);
        Assert.Equal(("tiny", "completed", 4), (listed.GetProperty("job").GetString(), listed.GetProperty("phase").GetString(), listed.GetProperty("step").GetInt32()));
        Assert.Equal(4, (await Jobs("logs", "tiny", "--ledger")).Output.Split('\n', StringSplitOptions.RemoveEmptyEntries).Length);
        Assert.Contains("has ended", (await Jobs("cancel", "tiny")).Output, StringComparison.Ordinal);
        var refused = (await CommandLine.RunAsync("jobs", "resume", "tiny", "--cluster", cluster.Address)).Expect(ExitCode.BadInput);
        Assert.Equal("error: JOB003 Job tiny has done all its steps; submit a new job with more.", refused.Error.Trim());
        var status = (await CommandLine.RunAsync("cluster", "status", "--cluster", cluster.Address)).Expect(ExitCode.Ok);
        Assert.Contains("1 of 1 devices are free", status.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Job_WithExpertsOnTwoRanks_ShowsWhoHoldsWhichTheirLoadAndTheStages()
    {
        using var work = new Workspace();
        TinyModelFolder.CreateWithExperts(work.Path("moe"), layers: 2, hidden: 64);
        await using var cluster = await ProcessCluster.StartAsync(1, 2, Cancellation);
        await using var console = ConsoleProcess.Start(
            work.Training("out", "--model", work.Path("moe"), "--train_iters", "4", "--expert_model_parallel_size", "2", "--cluster", cluster.Address, "--job_id", "moe"),
            new Dictionary<string, string?> { ["NPROC_PER_NODE"] = "2" });
        Assert.True(await console.Process.ExitAsync(patience, Cancellation) == ExitCode.Ok, console.Process.Transcript + cluster.Transcript);

        var shown = JsonSerializer.Deserialize<JsonElement>((await CommandLine.RunAsync("jobs", "show", "moe", "--output", "json", "--cluster", cluster.Address)).Expect(ExitCode.Ok).Output);
        var experts = shown.GetProperty("experts").EnumerateArray().ToList();
        Assert.Equal([(0, 4, 0), (4, 8, 1)], experts.Select(shard => (shard.GetProperty("first").GetInt32(), shard.GetProperty("end").GetInt32(), shard.GetProperty("ranks")[0].GetInt32())));
        var tokens = shown.GetProperty("tokens_per_expert").EnumerateArray().Select(count => count.GetInt64()).ToList();
        Assert.Equal(8, tokens.Count);
        Assert.True(tokens.Sum() > 0 && tokens.Sum() % (2 * 3) == 0, "two layers, three experts for a token");
        Assert.Equal(tokens.Sum(), experts.Sum(shard => shard.GetProperty("tokens").GetInt64()));
        var stage = Assert.Single(shown.GetProperty("stages").EnumerateArray());
        Assert.InRange(stage.GetProperty("compute_time_ms").GetDouble(), 0.1, stage.GetProperty("step_time_ms").GetDouble());
        string table = (await CommandLine.RunAsync("jobs", "show", "moe", "--cluster", cluster.Address)).Expect(ExitCode.Ok).Output;
        Assert.Contains("experts  ranks  tokens", table, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Console_Interrupted_DetachesAndAnotherOneFollowsAndStopsTheSameJob()
    {
        await using var cluster = await FaultCluster.StartAsync(1, 1, Cancellation, "relaxed");
        await using var first = cluster.Submit("long", 1);
        await first.WaitForStepAsync(2, patience, Cancellation);
        first.Process.Signal(Posix.SigInt);
        Assert.Equal(ExitCode.Ok, await first.Process.ExitAsync(patience, Cancellation));
        Assert.Contains(first.Events, item => item.TryGetProperty("text", out var text) && text.GetString() == $"come back: megatron jobs watch long --cluster {Full(cluster)}");

        // The same submission again is the same job; another one under its id is refused.
        await using var again = cluster.Submit("long", 1);
        await again.WaitForStepAsync(4, patience, Cancellation);
        await using var other = cluster.Submit("long", 1, "--lr", "2e-3");
        Assert.Equal(ExitCode.BadInput, await other.Process.ExitAsync(patience, Cancellation));
        Assert.Contains("error: JOB001 Another job was submitted under the id 'long'; choose another id.", other.Process.Lines.Select(line => line.Text));

        await using var watching = ConsoleProcess.Start(["jobs", "watch", "long", "--cluster", cluster.Processes.Address]);
        await watching.WaitForStepAsync(5, patience, Cancellation);
        (await CommandLine.RunAsync("jobs", "cancel", "long", "--cluster", cluster.Processes.Address)).Expect(ExitCode.Ok);
        foreach (var console in (ConsoleProcess[])[again, watching])
        {
            Assert.Equal(ExitCode.Ok, await console.Process.ExitAsync(patience, Cancellation));
            Assert.Contains(console.Events, item => ConsoleProcess.IsPhase(item, "Cancelled"));
        }
        Assert.Single(await JobsAsync(cluster));

        // It goes on under a new name, after the step that was saved.
        int saved = (int)cluster.Ledger("long")[^1].GetProperty("step").GetInt64();
        await using var resumed = ConsoleProcess.Start(["jobs", "resume", "long", "--cluster", cluster.Processes.Address]);
        var (step, _) = await resumed.WaitForStepAsync(1, patience, Cancellation);
        Assert.Equal(saved + 1, step.GetProperty("iteration").GetInt32());
        (await CommandLine.RunAsync("jobs", "cancel", "long.r2", "--no_save", "--cluster", cluster.Processes.Address)).Expect(ExitCode.Ok);
        Assert.Equal(ExitCode.Ok, await resumed.Process.ExitAsync(patience, Cancellation));
    }

    [Fact]
    public async Task BadAddressesAndIds_AreOneSentenceAndExitCode2()
    {
        await using var cluster = await FaultCluster.StartAsync(1, 1, Cancellation, "relaxed");
        await using var locked = await RedisServer.StartAsync(Cancellation, "--requirepass", "secret");
        await using var replica = await RedisServer.StartAsync(Cancellation, "--replicaof", "127.0.0.1", FormattableString.Invariant($"{locked.Port}"));
        await using var silent = await RedisServer.StartAsync(Cancellation);
        silent.Process.Signal(Posix.SigStop);
        string known = cluster.Processes.Address;
        foreach (var (words, start) in ((string[], string)[])
        [
            (["jobs", "show", "nobody", "--cluster", known], $"error: JOB002 The cluster {Full(cluster)} knows no job nobody; megatron jobs list shows those it knows."),
            (["jobs", "cancel", "nobody", "--cluster", known], "error: JOB002 "),
            (["jobs", "watch", "nobody", "--cluster", known], "error: JOB002 "),
            (["jobs", "list", "--cluster", known + "?cluster=other"], "error: CTRL006 No silo of the cluster "),
            (["jobs", "list", "--cluster", Address(locked)], "error: CTRL002 "),
            (["cluster", "status", "--cluster", Address(replica)], "error: CTRL003 "),
            (["silo", "--cluster", Address(silent), "--silo_devices", "0"], "error: CTRL001 "),
            (["silo", "--cluster", known, "--silo_devices", "0", "--silo_port", FormattableString.Invariant($"{cluster.Processes.Silos[0].SiloPort}")], "error: NET001 "),
            ([.. cluster.JobWords("a/b")], "error: CFG005 --job_id = a/b is no name;"),
            ([.. cluster.JobWords("ok"), "--lr", "-1"], "error: CFG005 --lr = -1 "),
        ])
        {
            var result = (await CommandLine.RunAsync(words)).Expect(ExitCode.BadInput);
            Assert.StartsWith(start, Assert.Single(result.Error.Split('\n', StringSplitOptions.RemoveEmptyEntries)), StringComparison.Ordinal);
        }
        Assert.Empty(await JobsAsync(cluster));
        silent.Process.Signal(Posix.SigCont);
    }

    [Fact]
    public async Task Submissions_AThousandAtOnce_AreOneJobWithEachStepOnce()
    {
        var log = new StringWriter();
        var result = await new ClusterScenarios(log, Cancellation).ManySubmissionsAsync(1);
        Assert.True(result.IsMet, log.ToString());
    }

    private static async Task<IReadOnlyList<string>> JobsAsync(FaultCluster cluster)
    {
        var listed = (await CommandLine.RunAsync("jobs", "list", "--output", "json", "--cluster", cluster.Processes.Address)).Expect(ExitCode.Ok);
        return listed.Output.Split('\n', StringSplitOptions.RemoveEmptyEntries);
    }

    private static string Full(FaultCluster cluster) => cluster.Processes.Address + "/0?cluster=megatron";

    private static string Address(RedisServer redis) => FormattableString.Invariant($"redis://127.0.0.1:{redis.Port}");
}
