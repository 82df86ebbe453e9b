using System.Diagnostics;
using System.Runtime.InteropServices;

namespace Megatron.Silo;

/// <summary>
/// A small parent of a silo's process: starts it, passes on what it is asked, and starts it again when it ended otherwise than asked. Where a container
/// or systemd does that, it is not needed.
/// </summary>
public sealed class SiloSupervisor
{
    /// <summary>
    /// Exit code of a process that was started wrongly: starting it again would not help. Only the first start tells: what is refused later, as where
    /// Redis does not answer, was right before and can be right again.
    /// </summary>
    private const int BadInput = 2;

    private static readonly TimeSpan firstDelay = TimeSpan.FromMilliseconds(200);
    private static readonly TimeSpan longestDelay = TimeSpan.FromSeconds(10);
    private static readonly TimeSpan healthyTime = TimeSpan.FromSeconds(30);

    private readonly string program;
    private readonly IReadOnlyList<string> arguments;
    private readonly TimeProvider time;
    private readonly Action<string> say;

    /// <param name="program">The program, e.g. <c>dotnet</c>.</param>
    /// <param name="arguments">Its words, without the wish to be supervised.</param>
    /// <param name="say">Gets a line when the process is started again.</param>
    public SiloSupervisor(string program, IReadOnlyList<string> arguments, TimeProvider time, Action<string> say)
    {
        this.program = program;
        this.arguments = arguments;
        this.time = time;
        this.say = say;
    }

    /// <summary>Runs until the process ends with 0, with 2 at its first start, or after <paramref name="stop"/>; returns its exit code.</summary>
    public async Task<int> RunAsync(Task stop)
    {
        var delay = firstDelay;
        for (bool isFirst = true; ; isFirst = false)
        {
            long startedAt = time.GetTimestamp();
            using var process = Process.Start(new ProcessStartInfo(program, arguments)) ?? throw new InvalidOperationException($"{program} could not be started");
            var exited = process.WaitForExitAsync();
            if (await Task.WhenAny(exited, stop) == stop)
            {
                Signal(process.Id, PosixTerminate);
                await exited;
            }
            if (process.ExitCode == 0 || (process.ExitCode == BadInput && isFirst) || stop.IsCompleted)
                return process.ExitCode;
            delay = time.GetElapsedTime(startedAt) > healthyTime ? firstDelay : delay * 2 < longestDelay ? delay * 2 : longestDelay;
            say(FormattableString.Invariant($"the silo's process ended with {process.ExitCode}; it is started again in {delay.TotalSeconds:F1} s"));
            if (await Task.WhenAny(Task.Delay(delay, time), stop) == stop)
                return 0;
        }
    }

    private const int PosixTerminate = 15;

    [DllImport("libc", EntryPoint = "kill")]
    private static extern int Kill(int process, int signal);

    private static void Signal(int process, int signal) => _ = Kill(process, signal);
}
