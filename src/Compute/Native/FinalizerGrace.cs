using System.Diagnostics;

namespace Megatron.Compute.Native;

/// <summary>
/// Holds the finalizers of each garbage collection back for a moment. TorchSharp passes a number (every <c>x.mul_(0.5)</c>) to libtorch as an address inside a
/// <c>Scalar</c> object to which nothing refers any more during the call; a collection at that moment lets the finalizer free it under libtorch's
/// hands (docs/adr/0007-finalizers-wait.md). What was in use when the collection began is out of use when the grace is over.
/// </summary>
/// <remarks>
/// Relies on the order in which the runtime runs finalizers of one collection: the oldest registered of the young generation first. The object that
/// waits is made anew by its own finalizer, so it is older than whatever a thread has just made.
/// </remarks>
internal sealed class FinalizerGrace
{
    private static readonly TimeSpan LongestGrace = TimeSpan.FromMilliseconds(20);
    private static int started;
    private static long lastEnded;

    private FinalizerGrace()
    {
    }

    /// <summary>Begins; later calls do nothing.</summary>
    public static void Begin()
    {
        if (Interlocked.Exchange(ref started, 1) == 0) _ = new FinalizerGrace();
    }

    ~FinalizerGrace()
    {
        if (Environment.HasShutdownStarted) return;
        _ = new FinalizerGrace();
        // Collections may follow each other faster than the grace: at most a third of the time is waited, so that finalizers keep up.
        var sinceLast = Stopwatch.GetElapsedTime(lastEnded);
        using var never = new ManualResetEvent(false);
        never.WaitOne(sinceLast / 2 < LongestGrace ? sinceLast / 2 : LongestGrace);
        lastEnded = Stopwatch.GetTimestamp();
    }
}
