using System.Globalization;
using System.Runtime.InteropServices;

namespace Megatron.Faults;

/// <summary>
/// Stops one thread of another process and nothing else of it, by ptrace: a compute thread that hangs while its process looks healthy. The thread
/// is stopped only inside a native library, where a hanging kernel or collective would hang too; in managed code the garbage collector would wait
/// for it and the whole process would stand still.
/// </summary>
public sealed partial class NativeThreads : IDisposable
{
    private const int Seize = 0x4206, Interrupt = 0x4207, Continue = 7, Detach = 17, GetRegisters = 12;
    private const int NumRegisters = 27, InstructionPointer = 16;
    private const int WaitAll = 0x40000000; // __WALL: threads that are no children of ours, too

    private readonly Thread tracer;
    private readonly ManualResetEventSlim release = new();
    private readonly TaskCompletionSource<string?> stopped = new(TaskCreationOptions.RunContinuationsAsynchronously);

    /// <param name="processId">The process.</param>
    /// <param name="threadId">Its thread.</param>
    private NativeThreads(int processId, int threadId)
    {
        // Every request must come from the thread that attached.
        tracer = new Thread(() => Trace(processId, threadId)) { IsBackground = true, Name = "tracer" };
        tracer.Start();
    }

    /// <summary>Stops the thread with a name; it runs again when the result is disposed.</summary>
    /// <exception cref="InvalidOperationException">There is no such thread, or the system does not let us.</exception>
    public static async Task<NativeThreads> StopAsync(int processId, string threadName)
    {
        var task = Directory.GetDirectories($"/proc/{processId}/task").FirstOrDefault(task => File.ReadAllText(Path.Combine(task, "comm")).Trim() == threadName)
            ?? throw new InvalidOperationException($"process {processId} has no thread {threadName}");
        var result = new NativeThreads(processId, int.Parse(Path.GetFileName(task), CultureInfo.InvariantCulture));
        return await result.stopped.Task is { } problem ? throw new InvalidOperationException(problem) : result;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        release.Set();
        tracer.Join();
        release.Dispose();
    }

    private unsafe void Trace(int processId, int threadId)
    {
        if (Request(Seize, threadId, 0, 0) != 0)
        {
            stopped.SetResult($"ptrace is not allowed here (error {Marshal.GetLastPInvokeError()})");
            return;
        }
        var registers = stackalloc ulong[NumRegisters];
        while (true)
        {
            _ = Request(Interrupt, threadId, 0, 0);
            int status;
            _ = WaitFor(threadId, &status, WaitAll);
            _ = Request(GetRegisters, threadId, 0, (nint)registers);
            if (IsNativeLibrary(processId, registers[InstructionPointer])) break;
            _ = Request(Continue, threadId, 0, 0);
            release.Wait(TimeSpan.FromMilliseconds(1));
        }
        stopped.SetResult(null);
        release.Wait();
        _ = Request(Detach, threadId, 0, 0); // fails when the process is gone, which is fine
    }

    private static bool IsNativeLibrary(int processId, ulong address)
    {
        foreach (string line in File.ReadLines($"/proc/{processId}/maps"))
        {
            string[] range = line[..line.IndexOf(' ', StringComparison.Ordinal)].Split('-');
            if (address < Convert.ToUInt64(range[0], 16) || address >= Convert.ToUInt64(range[1], 16)) continue;
            return line.Contains("torch", StringComparison.Ordinal) || line.Contains("/libc10", StringComparison.Ordinal) || line.Contains("/libgomp", StringComparison.Ordinal);
        }
        return false;
    }

    [LibraryImport("libc", EntryPoint = "ptrace", SetLastError = true)]
    private static partial long Request(int request, int threadId, nint address, nint data);

    [LibraryImport("libc", EntryPoint = "waitpid")]
    private static unsafe partial int WaitFor(int threadId, int* status, int options);
}
