using System.Runtime.InteropServices;

namespace Megatron.Compute.Native;

/// <summary>The scheduler's weight of a thread. .NET's own thread priorities have no effect on Linux.</summary>
internal static partial class ThreadWeight
{
    private const int OfOneThread = 0; // PRIO_PROCESS: Linux applies it to the one thread named
    private const int CallingThread = 0;

    /// <summary>A seventieth of the weight of other threads: gets what they leave, and enough to end some time when they leave nothing.</summary>
    private const int Niceness = 19;

    /// <summary>Lets every other thread of the machine come before this one, for good.</summary>
    public static void GiveWay() => _ = SetPriority(OfOneThread, CallingThread, Niceness); // refused: then it competes, nothing else

    [LibraryImport("libc", EntryPoint = "setpriority")]
    private static partial int SetPriority(int which, int who, int niceness);
}
