using System.Globalization;
using Megatron.Client.Cli;
using Megatron.Testing.Processes;

namespace Megatron.EndToEnd.Tests;

/// <summary><c>megatron silo --supervise</c> with a real silo: the parent and its child are processes of their own.</summary>
public sealed class SupervisorTests
{
    private static readonly TimeSpan patience = TimeSpan.FromSeconds(60);

    public SupervisorTests() => Assert.SkipUnless(RedisServer.IsInstalled, RedisServer.SkipReason);

    private static CancellationToken Cancellation => TestContext.Current.CancellationToken;

    [Fact]
    public async Task Supervise_TheSiloIsKilled_ItIsThereAgainAndSigtermEndsBothWithZero()
    {
        await using var redis = await RedisServer.StartAsync(Cancellation);
        string cluster = string.Create(CultureInfo.InvariantCulture, $"redis://127.0.0.1:{redis.Port}");
        await using var supervisor = StartSupervisor(cluster);
        int silo = 0;
        try
        {
            silo = await ReadyAsync(supervisor, from: 0);
            int killed = silo, from = supervisor.Lines.Count;
            Posix.Signal(killed, Posix.SigKill);
            silo = await ReadyAsync(supervisor, from);
            Assert.NotEqual(killed, silo);
            Assert.StartsWith("the silo's process ended with 137; it is started again in ", Assert.Single(supervisor.Lines, line => line.IsError).Text, StringComparison.Ordinal);
            var status = (await CommandLine.RunAsync("cluster", "status", "--cluster", cluster)).Expect(ExitCode.Ok);
            Assert.Contains("1 of 1 devices are free", status.Output, StringComparison.Ordinal);

            supervisor.Signal(Posix.SigTerm);
            Assert.Equal(ExitCode.Ok, await supervisor.ExitAsync(patience, Cancellation));
            Assert.False(Directory.Exists(ProcessFolder(silo)), supervisor.Transcript);
            silo = 0;
        }
        finally
        {
            if (silo != 0) Posix.Signal(silo, Posix.SigKill); // a parent that is killed does not take it along
        }
    }

    private static ProgramProcess StartSupervisor(string cluster)
    {
        string[] ports = [.. FreePorts.Take(2).Select(port => port.ToString(CultureInfo.InvariantCulture))];
        return ProgramProcess.StartMegatron(
        [
            "silo", "--supervise", "--cluster", cluster, "--node_name", "n0", "--silo_devices", "0", "--silo_address", "127.0.0.1",
            "--silo_port", ports[0], "--gateway_port", ports[1], "--membership", "relaxed",
        ]);
    }

    /// <summary>Waits until the silo takes part in the cluster; returns the id of its process.</summary>
    private static async Task<int> ReadyAsync(ProgramProcess supervisor, int from)
    {
        await supervisor.WaitForLineAsync("silo n0 ready", line => line.Text.Contains(" is ready", StringComparison.Ordinal), patience, Cancellation, from);
        return Directory.GetDirectories(Path.Combine(ProcessFolder(supervisor.Id), "task"))
            .SelectMany(thread => File.ReadAllText(Path.Combine(thread, "children")).Split(' ', StringSplitOptions.RemoveEmptyEntries))
            .Select(child => int.Parse(child, CultureInfo.InvariantCulture)).Single();
    }

    private static string ProcessFolder(int id) => string.Create(CultureInfo.InvariantCulture, $"/proc/{id}");
}
