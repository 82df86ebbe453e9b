using System.Runtime.InteropServices;

namespace Megatron.Testing.Processes;

/// <summary>Signals by number, sent at once: a helper program for each would cost more than what is measured.</summary>
public static partial class Posix
{
    public const int SigInt = 2, SigKill = 9, SigTerm = 15, SigCont = 18, SigStop = 19;

    /// <summary>Sends a signal; a process that has ended already is no error.</summary>
    public static void Signal(int processId, int signal) => _ = Kill(processId, signal);

    [LibraryImport("libc", EntryPoint = "kill")]
    private static partial int Kill(int processId, int signal);
}
