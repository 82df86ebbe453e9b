using Megatron.Testing;

namespace Megatron.Silo.Tests;

/// <summary>The parent of a silo's process, with a shell in the place of the silo.</summary>
public sealed class SiloSupervisorTests : IDisposable
{
    private readonly TemporaryFolder folder = new();
    private readonly List<string> said = [];

    public void Dispose() => folder.Dispose();

    [Theory]
    [InlineData("exit 1", 1)]
    [InlineData("kill -9 $$", 137)]
    public async Task Run_ProcessEndsOtherwiseThanAsked_StartsItAgain(string end, int exitCode)
    {
        Assert.Equal(0, await RunAsync($"echo run >>{Mark}; [ $(wc -l <{Mark}) -ge 3 ] && exit 0; {end}", Task.Delay(Timeout.Infinite)));
        Assert.Equal(3, File.ReadAllLines(Mark).Length);
        Assert.Equal(2, said.Count);
        Assert.All(said, line => Assert.StartsWith($"the silo's process ended with {exitCode}; it is started again in ", line, StringComparison.Ordinal));
    }

    [Fact]
    public async Task Run_ProcessThatWasStartedWrongly_IsNotStartedAgain()
    {
        Assert.Equal(2, await RunAsync($"echo run >>{Mark}; exit 2", Task.Delay(Timeout.Infinite)));
        Assert.Single(File.ReadAllLines(Mark));
        Assert.Empty(said);
    }

    [Fact]
    public async Task Run_ProcessThatRanAndIsRefusedLater_IsStartedAgain()
    {
        Assert.Equal(0, await RunAsync($"echo run >>{Mark}; case $(wc -l <{Mark}) in 1) exit 1;; 2) exit 2;; esac", Task.Delay(Timeout.Infinite)));
        Assert.Equal(3, File.ReadAllLines(Mark).Length);
        Assert.Equal(2, said.Count);
    }

    [Fact]
    public async Task Run_Stop_IsPassedOnAndTheExitCodeOfTheProcessReturned()
    {
        using var watcher = new FileSystemWatcher(folder.Root) { EnableRaisingEvents = true };
        var ready = new TaskCompletionSource();
        watcher.Created += (_, _) => ready.TrySetResult();
        Assert.Equal(0, await RunAsync($"trap 'exit 0' TERM; echo ready >{Mark}; while :; do sleep 0.05; done", ready.Task));
        Assert.Empty(said);
    }

    private string Mark => folder.Combine("mark");

    private Task<int> RunAsync(string script, Task stop) =>
        new SiloSupervisor("/bin/sh", ["-c", script], TimeProvider.System, said.Add).RunAsync(stop);
}
