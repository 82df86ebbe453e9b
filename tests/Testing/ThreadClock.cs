using System.Runtime.InteropServices;

namespace Megatron.Testing;

/// <summary>Processor time of the calling thread: what a benchmark of one thread asserts, so that a busy machine does not fail it.</summary>
public static class ThreadClock
{
    /// <summary>Seconds of processor time that this thread has used.</summary>
    public static double Seconds
    {
        get
        {
            const int ClockThreadCpuTimeId = 3;
            return clock_gettime(ClockThreadCpuTimeId, out var time) == 0
                ? time.Seconds + (time.Nanoseconds * 1e-9)
                : throw new InvalidOperationException("The thread's processor clock cannot be read.");
        }
    }

    [DllImport("libc", ExactSpelling = true)]
    private static extern int clock_gettime(int clock, out TimeSpec time);

    [StructLayout(LayoutKind.Sequential)]
    private struct TimeSpec
    {
        public long Seconds;
        public long Nanoseconds;
    }
}
