using System.Runtime.InteropServices;
using Megatron.Client.Jobs;

namespace Megatron.Client.Tests.Jobs;

public sealed partial class StopSignalsTests
{
    private const int SigTerm = 15;

    [Fact]
    public async Task OfThisProcess_TwoSigTerms_AskToStopThenToAbort()
    {
        using var signals = StopSignals.OfThisProcess();
        var aborted = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        using var registration = signals.Abort.Register(aborted.SetResult);

        Assert.Equal(0, Kill(Environment.ProcessId, SigTerm));
        await signals.StopRequested.WaitAsync(TimeSpan.FromSeconds(30));
        Assert.False(signals.Abort.IsCancellationRequested);
        Assert.Equal(0, Kill(Environment.ProcessId, SigTerm));
        await aborted.Task.WaitAsync(TimeSpan.FromSeconds(30));
    }

    [LibraryImport("libc", EntryPoint = "kill")]
    private static partial int Kill(int processId, int signal);
}
