using System.Diagnostics;
using System.Runtime.InteropServices;

namespace Megatron.Compute.Native;

/// <summary>
/// Gives memory that the C library holds but nobody uses back to the system. Tensors of changing sizes on a CPU leave holes; without this a run's
/// resident memory would creep up by a fifth over its first hundred steps although it holds nothing more. The heap is the process's, and so is this.
/// </summary>
internal static partial class FreeMemory
{
    /// <summary>At most this share of the time is spent here.</summary>
    private const double LargestShareOfTime = 0.01;

    private static readonly Lock gate = new();
    private static long lastEnded;
    private static TimeSpan lastTook;

    /// <summary>To be called at the end of a step, by any rank; does nothing when it was done a moment ago or another thread is at it.</summary>
    public static void GiveBackWhenDue()
    {
        if (!gate.TryEnter()) return;
        try
        {
            if (Stopwatch.GetElapsedTime(lastEnded) * LargestShareOfTime < lastTook) return;
            var started = Stopwatch.GetTimestamp();
            _ = Trim(0);
            lastEnded = Stopwatch.GetTimestamp();
            lastTook = Stopwatch.GetElapsedTime(started, lastEnded);
        }
        finally
        {
            gate.Exit();
        }
    }

    [LibraryImport("libc", EntryPoint = "malloc_trim")]
    private static partial int Trim(nuint kept);
}
