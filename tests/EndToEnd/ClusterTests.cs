using Megatron.Client.Cli;
using Megatron.Testing.Processes;

namespace Megatron.EndToEnd.Tests;

/// <summary>Consoles and silos as processes of their own around a real Redis.</summary>
public sealed class ClusterTests
{
    private static readonly TimeSpan patience = TimeSpan.FromSeconds(60);

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
        var shown = (await CommandLine.RunAsync("jobs", "show", "tiny", "--cluster", cluster.Address)).Expect(ExitCode.Ok);
        Assert.Contains("completed", shown.Output, StringComparison.Ordinal);
    }
}
