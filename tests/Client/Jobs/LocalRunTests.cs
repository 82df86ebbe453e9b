using Megatron.Client.Jobs;
using Megatron.Compute.Configuration;
using Megatron.Compute.Training;
using Megatron.Grains.Jobs;
using Megatron.Silo;
using Megatron.Testing;

namespace Megatron.Client.Tests.Jobs;

/// <summary>The whole local path with fake ranks: silo, job, signals, exit code.</summary>
public sealed class LocalRunTests : IDisposable
{
    private readonly string folder = Path.Combine(Path.GetTempPath(), "megatron-run-" + Guid.NewGuid().ToString("N"));
    private readonly StringWriter output = new();
    private readonly StringWriter error = new();

    public void Dispose()
    {
        if (Directory.Exists(folder))
            Directory.Delete(folder, recursive: true);
    }

    [Fact]
    public async Task Completed_ReturnsZeroAndLeavesTheLog()
    {
        int exitCode = await RunAsync(index => new FakeRankWorker(index) { Script = FakeRankWorker.TrainToEnd(10) }, worldSize: 2);
        Assert.Equal(0, exitCode);
        Assert.Equal(3, File.ReadAllLines(Path.Combine(folder, "logging.jsonl")).Length);
        Assert.Contains("iteration       10/      10 | consumed samples:          160 |", output.ToString(), StringComparison.Ordinal);
        Assert.Contains("End time of running main: ", output.ToString(), StringComparison.Ordinal);
        Assert.Equal("", error.ToString());
    }

    [Fact]
    public async Task UsersMistakeOfARank_Returns2WithOneLineAndNoTrace()
    {
        int exitCode = await RunAsync(index => new FakeRankWorker(index)
        {
            Script = (_, command) => command is StartRank start
                ? [new RankFaulted(start.Attempt, start.Rank, "DATA003 row 7 has no messages; remove it.", IsUserError: true, "   at A.B()")]
                : [],
        });
        Assert.Equal(2, exitCode);
        Assert.Equal("error: DATA003 row 7 has no messages; remove it." + Environment.NewLine, error.ToString());
        Assert.False(Directory.Exists(folder));
    }

    [Fact]
    public async Task WorkerThatCannotBeMade_IsAMistakeOfTheUserOrAFault()
    {
        Assert.Equal(2, await RunAsync(_ => throw new ConfigException("NATIVE001", "No libtorch was found; install it.")));
        Assert.Equal("error: NATIVE001 No libtorch was found; install it." + Environment.NewLine, error.ToString());
        Assert.Equal(1, await RunAsync(_ => throw new InvalidOperationException("broken")));
    }

    [Fact]
    public async Task FirstSignal_SavesAndReturnsZero()
    {
        using var signals = new StopSignals();
        int exitCode = await RunAsync(index => new FakeRankWorker(index)
        {
            Script = (_, command) => command switch
            {
                StartRank start => RaiseAfter(signals, [FakeRankWorker.Started(start), FakeRankWorker.Step(start, 1)]),
                StopRank { SaveCheckpoint: true } stop => [new CheckpointReceipt(stop.Attempt, 0, "s", 1, [], "{}")],
                CommitCheckpoint commit =>
                    [new CheckpointCommitted(commit.Attempt, 0, "s", 1, "/run/iter_0000001"), new RankFinished(commit.Attempt, 0, 1, Completed: false)],
                _ => [],
            },
        }, signals: signals);
        Assert.Equal(0, exitCode);
        Assert.Contains("Stopping: ", output.ToString(), StringComparison.Ordinal);
        Assert.Contains("stopped after step 1; the checkpoint is /run/iter_0000001", output.ToString(), StringComparison.Ordinal);
    }

    [Fact]
    public async Task SecondSignal_AbortsAndReturns130()
    {
        using var signals = new StopSignals();
        var worker = new FakeRankWorker(0)
        {
            Script = (_, command) => command switch
            {
                StartRank start => RaiseAfter(signals, [FakeRankWorker.Started(start), FakeRankWorker.Step(start, 1)]),
                StopRank => RaiseAfter(signals, []),
                AbortRank abort => [new RankFinished(abort.Attempt, 0, 1, Completed: false)],
                _ => [],
            },
        };
        Assert.Equal(JobFollower.ExitAborted, await RunAsync(_ => worker, signals: signals));
        await worker.NextAsync<StartRank>();
        await worker.NextAsync<StopRank>();
        await worker.NextAsync<AbortRank>();
        Assert.True(worker.IsDisposed);
    }

    private static IEnumerable<RankReport> RaiseAfter(StopSignals signals, IEnumerable<RankReport> reports)
    {
        foreach (var report in reports)
            yield return report;
        signals.Raise();
    }

    private async Task<int> RunAsync(Func<int, IRankWorker> createWorker, int worldSize = 1, StopSignals? signals = null)
    {
        using var own = new StopSignals();
        using var console = new JobConsole(output, error, new RunLogOptions { Folder = folder, Throughput = true, TensorBoard = null }, columns: null, TimeZoneInfo.Utc);
        var spec = new JobSpec { JobId = "job", Name = "job", ConfigJson = "{}", WorldSize = worldSize, OutputFolder = folder };
        return await LocalRun.RunAsync(spec, SiloOptions.ForLocalJob(worldSize, null), _ => createWorker, console, signals ?? own);
    }
}
