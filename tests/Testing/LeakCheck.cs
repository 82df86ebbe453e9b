using TorchSharp;

namespace Megatron.Testing;

/// <summary>
/// Counts TorchSharp tensors of this thread: <c>using var leaks = LeakCheck.Start();</c> as the first line of a test, or at its end
/// <see cref="AssertNone"/>. Tensors that are neither disposed nor owned by an open outer scope are leaks.
/// </summary>
public sealed class LeakCheck : IDisposable
{
    private readonly long liveBefore;
    private readonly int threadId = Environment.CurrentManagedThreadId;

    private LeakCheck() => liveBefore = Live;

    /// <summary>Starts counting on this thread.</summary>
    public static LeakCheck Start()
    {
        TorchTestSetup.EnsureLoaded();
        return new LeakCheck();
    }

    /// <summary>Live tensors of this thread, inside and outside scopes.</summary>
    public static long Live => DisposeScopeManager.Statistics.ThreadTotalLiveCount;

    /// <summary>Fails when more tensors live than at the start.</summary>
    public void AssertNone()
    {
        if (Environment.CurrentManagedThreadId != threadId) throw new InvalidOperationException("a leak check ends on the thread where it began");
        var leaked = Live - liveBefore;
        if (leaked != 0) throw new InvalidOperationException($"{leaked} tensors were not disposed (statistics: {DisposeScopeManager.Statistics})");
    }

    /// <inheritdoc/>
    public void Dispose() => AssertNone();
}
