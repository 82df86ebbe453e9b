using System.Runtime.InteropServices;

namespace Megatron.Client.Jobs;

/// <summary>What the user's signals ask for: the first asks the job to save and stop, the second to leave at once.</summary>
public sealed class StopSignals : IDisposable
{
    private readonly CancellationTokenSource abort = new();
    private readonly TaskCompletionSource stop = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private readonly List<PosixSignalRegistration> registrations = [];

    /// <summary>Completes at the first signal.</summary>
    public Task StopRequested => stop.Task;

    /// <summary>Cancelled at the second signal.</summary>
    public CancellationToken Abort => abort.Token;

    /// <summary>Takes over SIGINT (Ctrl-C) and SIGTERM of this process until disposed.</summary>
    public static StopSignals OfThisProcess()
    {
        var signals = new StopSignals();
        foreach (var signal in new[] { PosixSignal.SIGINT, PosixSignal.SIGTERM })
        {
            signals.registrations.Add(PosixSignalRegistration.Create(signal, context =>
            {
                context.Cancel = true;
                signals.Raise();
            }));
        }
        return signals;
    }

    /// <summary>One signal arrived; any thread may call it.</summary>
    public void Raise()
    {
        if (!stop.TrySetResult())
            abort.Cancel();
    }

    public void Dispose()
    {
        foreach (var registration in registrations)
            registration.Dispose();
        abort.Dispose();
    }
}
