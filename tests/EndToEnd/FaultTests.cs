using Megatron.Client.Cli;
using Megatron.Faults;
using Megatron.Testing.Processes;

namespace Megatron.EndToEnd.Tests;

/// <summary>
/// What a training survives, with real processes: what must hold, not how fast (megatron faults bench measures that). The cold start runs always,
/// the rest with <c>megatron test EndToEnd --faults</c>.
/// </summary>
public sealed class FaultTests
{
    private static readonly TimeSpan patience = TimeSpan.FromSeconds(120);
    private readonly StringWriter log = new();

    public FaultTests() => Assert.SkipUnless(RedisServer.IsInstalled, RedisServer.SkipReason);

    private static CancellationToken Cancellation => TestContext.Current.CancellationToken;

    [Fact]
    [Trait("Category", "faults")]
    public async Task Kill_OfASiloWithARank_EndsWithTheBitsOfAnUndisturbedRunAndSaysWhatHappened()
    {
        string[] words = ["--train_iters", "16", "--save_interval", "4"];
        await using var cluster = await FaultCluster.StartAsync(3, 1, Cancellation, "relaxed");
        await using (var undisturbed = cluster.Submit("undisturbed", 2, words))
            Assert.Equal(ExitCode.Ok, await undisturbed.Process.ExitAsync(patience, Cancellation));

        await using var console = cluster.Submit("killed", 2, words);
        await console.WaitForStepAsync(6, patience, Cancellation);
        var silo = cluster.Processes.Silos[0];
        int from = console.Process.Lines.Count;
        var faultAt = TimeProvider.System.GetUtcNow();
        silo.Process.Signal(Posix.SigKill);
        var recovery = await Recovery.ObserveAsync(console, faultAt, from, Cancellation);
        Assert.True(await console.Process.ExitAsync(patience, Cancellation) == ExitCode.Ok, console.Process.Transcript + cluster.Processes.Transcript);

        string lost = console.Events.First(item => ConsoleProcess.IsPhase(item, "Recovering")).GetProperty("reason").GetString() ?? "";
        Assert.Contains("n0", lost, StringComparison.Ordinal);
        Assert.Contains("2 ranks on nodes n1 (1), n2 (1)", recovery.Plan, StringComparison.Ordinal);
        Assert.Contains("goes on from step ", recovery.Plan, StringComparison.Ordinal);
        AssertSameSteps(cluster, "undisturbed", "killed", 16);
        RunFiles.AssertSame(
            Path.Combine(cluster.RunFolder("undisturbed"), "iter_0000016"), Path.Combine(cluster.RunFolder("killed"), "iter_0000016"), "args.json", "manifest.json");
    }

    [Theory]
    [Trait("Category", "faults")]
    [InlineData(3)] // the third silo takes the lost rank
    [InlineData(2, "--logical_data_shards", "2")] // one replica is left
    public async Task Kill_WithPeerSnapshots_GoesOnFromMemoryWithTheBitsOfAnUndisturbedRun(int numSilos, params string[] more)
    {
        string[] words = ["--train_iters", "16", "--save_interval", "1000", "--peer_snapshot_interval", "1", .. more];
        await using var cluster = await FaultCluster.StartAsync(numSilos, 1, Cancellation, "relaxed");
        await using (var undisturbed = cluster.Submit("undisturbed", 2, words))
        {
            Assert.Equal(ExitCode.Ok, await undisturbed.Process.ExitAsync(patience, Cancellation));
            Assert.Contains(undisturbed.Events, item => item.TryGetProperty("text", out var text) && text.GetString()?.Contains("rank 1 on another node gets them", StringComparison.Ordinal) == true);
        }

        await using var console = cluster.Submit("killed", 2, words);
        await console.WaitForStepAsync(6, patience, Cancellation);
        int from = console.Process.Lines.Count;
        var faultAt = TimeProvider.System.GetUtcNow();
        cluster.Processes.Silos[0].Process.Signal(Posix.SigKill);
        var recovery = await Recovery.ObserveAsync(console, faultAt, from, Cancellation);
        Assert.True(await console.Process.ExitAsync(patience, Cancellation) == ExitCode.Ok, console.Process.Transcript + cluster.Processes.Transcript);
        Assert.Contains("; goes on from the snapshot of step ", recovery.Plan, StringComparison.Ordinal);
        Assert.Contains(" held by n1 (", recovery.Plan, StringComparison.Ordinal);
        Assert.InRange(recovery.NumRecomputed, 0, 1);
        AssertSameSteps(cluster, "undisturbed", "killed", 16);
        byte[] Weights(string job) => File.ReadAllBytes(Path.Combine(cluster.RunFolder(job), "iter_0000016", "model.safetensors"));
        Assert.Equal(Weights("undisturbed"), Weights("killed"));
    }

    [Fact]
    [Trait("Category", "faults")]
    public async Task ColdStart_AfterAllSilosWereKilled_TheJobGoesOnByItself()
    {
        await using var cluster = await FaultCluster.StartAsync(2, 1, Cancellation, "relaxed");
        await using var console = cluster.Submit("cold", 2, "--train_iters", "14", "--save_interval", "3");
        await console.WaitForStepAsync(5, patience, Cancellation);
        foreach (var silo in cluster.Processes.Silos) silo.Process.Signal(Posix.SigKill);
        foreach (var silo in cluster.Processes.Silos)
        {
            await silo.KillAsync();
            silo.StartAgain();
        }
        Assert.True(await console.Process.ExitAsync(patience, Cancellation) == ExitCode.Ok, console.Process.Transcript + cluster.Processes.Transcript);
        AssertConsistent(cluster, "cold", 14);
    }

    [Fact]
    [Trait("Category", "faults")]
    public async Task Terminate_OfASiloWithARank_SavesExitsWith0AndTheJobGoesOn()
    {
        await using var cluster = await FaultCluster.StartAsync(2, 1, Cancellation, "relaxed");
        await using var console = cluster.Submit("drained", 1, "--save_interval", "1000");
        await console.WaitForStepAsync(3, patience, Cancellation);
        string plan = console.Events.Last(item => ConsoleProcess.IsAttempt(item, out _)).GetProperty("reason").GetString() ?? "";
        var silo = cluster.Processes.Silos.Single(silo => plan.Contains("node " + silo.Node, StringComparison.Ordinal));
        int from = console.Process.Lines.Count;
        silo.Process.Signal(Posix.SigTerm);
        Assert.Equal(ExitCode.Ok, await silo.Process.ExitAsync(patience, Cancellation));
        var (saved, _) = await console.WaitForAsync("a checkpoint", item => item.GetProperty("event").GetString() == "checkpoint", patience, Cancellation, from);
        var (step, _) = await console.WaitForAsync("a step of the next attempt", item =>
            ConsoleProcess.IsStep(item, out long iteration) && iteration > saved.GetProperty("iteration").GetInt64(), patience, Cancellation, from);
        Assert.Equal(saved.GetProperty("iteration").GetInt64() + 1, step.GetProperty("iteration").GetInt64());
        Assert.Empty(HistoryChecker.CheckLedger(cluster.Ledger("drained")));
    }

    [Fact]
    [Trait("Category", "faults")]
    public async Task Freeze_OfASilo_IsSeenAndTheJobGoesOn() => AssertAllMeasured(await Kills().FreezeAsync(1));

    [Fact]
    [Trait("Category", "faults")]
    public async Task Hang_OfAComputeThread_IsSeenAndTheJobGoesOn() => AssertAllMeasured([await Kills().HangAsync(1)]);

    [Fact]
    [Trait("Category", "faults")]
    public async Task Kill_WithoutStandby_TheRestartedSiloTakesTheRankBack() => AssertAllMeasured([await Kills().RestartAsync(2)]);

    [Fact]
    [Trait("Category", "faults")]
    public async Task Kill_OfTheSiloWithTheJobsGrain_TheConsoleFindsTheJobAgain() => AssertAllMeasured([await Cluster().CoordinatorAsync(1)]);

    [Fact]
    [Trait("Category", "faults")]
    public async Task Redis_RestartedEmpty_NeverMakesASecondCluster()
    {
        var result = await Cluster().EmptyRedisAsync(1);
        Assert.DoesNotContain("SPLIT", result.Measured, StringComparison.Ordinal);
    }

    [Fact]
    [Trait("Category", "faults")]
    public async Task Redis_Frozen_CostsNoStep() => Assert.StartsWith("median 0, max 0", (await Cluster().FrozenRedisAsync(1)).Measured, StringComparison.Ordinal);

    [Fact]
    [Trait("Category", "faults")]
    public async Task Bits_AfterKills_AreThoseOfAnUndisturbedRun() =>
        Assert.All(await new BitwiseScenario(new Random(1), log, Cancellation).RunAsync(1), result => Assert.True(result.IsMet, log.ToString()));

    private KillScenarios Kills() => new(new Random(1), log, Cancellation);

    private ClusterScenarios Cluster() => new(log, Cancellation);

    // A scenario that runs to its end has seen the job come back each time; its times are the bench's business.
    private void AssertAllMeasured(IReadOnlyList<GoalResult> results) => Assert.All(results, result => Assert.True(result.IsMet is not null, result.Measured + log));

    private static void AssertSameSteps(FaultCluster cluster, string expected, string actual, int numSteps)
    {
        AssertConsistent(cluster, actual, numSteps);
        SortedDictionary<long, string?> Losses(string job) => new(cluster.Ledger(job)
            .GroupBy(line => line.GetProperty("step").GetInt64()).ToDictionary(step => step.Key, step => step.Last().GetProperty("loss_bits").GetString()));
        Assert.Equal(Losses(expected), Losses(actual));
    }

    private static void AssertConsistent(FaultCluster cluster, string job, int numSteps)
    {
        var ledger = cluster.Ledger(job);
        Assert.Equal(Enumerable.Range(1, numSteps).Select(step => (long)step), ledger.Select(line => line.GetProperty("step").GetInt64()).Distinct().Order());
        Assert.Empty(HistoryChecker.CheckLedger(ledger));
        Assert.Empty(HistoryChecker.CheckLogs(HistoryChecker.ReadLogs(cluster.Processes.LogFolder), job));
    }
}
