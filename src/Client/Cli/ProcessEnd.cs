using System.Diagnostics.CodeAnalysis;
using System.Runtime.InteropServices;

namespace Megatron.Client.Cli;

/// <summary>The end of the process.</summary>
internal static partial class ProcessEnd
{
    /// <summary>
    /// Ends the process with this exit code whatever its other threads do. After an abort a rank may still be inside libtorch: the destructors that an
    /// ordinary end runs would pull its memory away, and the process would end with a segmentation fault instead.
    /// </summary>
    [DoesNotReturn]
    public static void Now(int exitCode)
    {
        Console.Out.Flush();
        Console.Error.Flush();
        ExitAtOnce(exitCode);
        throw new InvalidOperationException("_exit came back");
    }

    [LibraryImport("libc", EntryPoint = "_exit")]
    private static partial void ExitAtOnce(int exitCode);
}
