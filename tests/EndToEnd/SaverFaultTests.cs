using System.Diagnostics;
using System.Globalization;
using System.Reflection;
using System.Runtime.InteropServices;
using System.Text.RegularExpressions;
using Megatron.Compute.Checkpointing;
using Megatron.Testing;

namespace Megatron.EndToEnd.Tests;

/// <summary>
/// A save that is killed, or whose disk fails, at each of its system calls (reliability R19, R20): strace traces a process that saves, and injects the
/// fault. After each one the newest checkpoint that verifies is the old or the new one, holds what was saved, and the next save works. Started by
/// <c>./megatron test EndToEnd --faults</c>; needs strace.
/// </summary>
public sealed partial class SaverFaultTests(ITestOutputHelper output)
{
    private const string Calls = "openat,mkdir,mkdirat,pwrite64,pread64,fsync,rename,renameat,renameat2,unlink,unlinkat,rmdir,ftruncate,fallocate,flock,fstat,stat,lstat,newfstatat,statfs,getdents64,readlink";

    // The state on the disk changes only here: a kill at any other call leaves what a kill at the next one of these leaves.
    private static readonly HashSet<string> changing = ["openat", "mkdir", "mkdirat", "pwrite64", "fsync", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "ftruncate", "fallocate"];

    [Fact, Trait("Category", "faults")]
    public async Task Save_ErrorAtEverySystemCall_TrainingSideGoesOnAndNothingIsLost()
    {
        using var folder = new TemporaryFolder();
        using var saver = new Saver(folder.Root);
        await saver.SaveAsync(1);
        var counts = await saver.CountAsync(2, output);
        var (iteration, faults, refused) = (3L, 0, 0);
        foreach (var error in new[] { "EIO", "ENOSPC" })
            foreach (var (call, count) in counts)
                for (var k = 1; k <= count; k++)
                {
                    await using (await Tracer.AttachAsync(saver.Id, $"inject={call}:error={error}:when={k}"))
                    {
                        var answer = await saver.SaveAsync(iteration);
                        faults++;
                        if (answer != "committed") refused++;
                        CheckStore(folder.Root, answer == "committed" ? iteration : iteration - 1, iteration, $"{error} at {call} number {k}: {answer}");
                    }
                    Assert.Equal("committed", await saver.SaveAsync(iteration));
                    CheckStore(folder.Root, iteration, iteration, $"after {error} at {call} number {k}");
                    iteration++;
                }
        output.WriteLine($"{faults} faults injected, {refused} saves refused, {faults - refused} saved all the same; 0 checkpoints lost, 0 corrupt loads, every next save worked");
    }

    [Fact, Trait("Category", "faults")]
    public async Task Save_KilledAtEverySystemCall_TheNewestVerifiedCheckpointLoads()
    {
        using var folder = new TemporaryFolder();
        IReadOnlyList<(string Call, int Count)> counts;
        using (var saver = new Saver(folder.Root))
        {
            await saver.SaveAsync(1);
            counts = await saver.CountAsync(2, output);
        }
        var (iteration, kills, committed) = (3L, 0, 0);
        foreach (var (call, count) in counts.Where(pair => changing.Contains(pair.Call)))
            for (var k = 1; k <= count; k++)
            {
                using (var saver = new Saver(folder.Root))
                {
                    await using (await Tracer.AttachAsync(saver.Id, $"inject={call}:signal=KILL:when={k}"))
                    {
                        var answer = await saver.SaveAsync(iteration);
                        kills++;
                        var found = CheckStore(folder.Root, answer == "committed" ? iteration : iteration - 1, iteration, $"kill at {call} number {k}: {answer}");
                        if (found == iteration) committed++;
                        if (found < iteration) Assert.Equal("committed", SaverLoop.Save(folder.Root, iteration));
                    }
                }
                CheckStore(folder.Root, iteration, iteration, $"after a kill at {call} number {k}");
                iteration++;
            }
        output.WriteLine($"{kills} kills, {committed} of them after the commit; 0 checkpoints lost, 0 corrupt loads, every next save worked");
    }

    /// <summary>The newest checkpoint that verifies, with all its values.</summary>
    private static long CheckStore(string root, long atLeast, long atMost, string after)
    {
        var found = new CheckpointStore(root, TimeProvider.System).FindNewestVerified(CheckpointVerification.Full).Found;
        Assert.True(found is not null, $"no checkpoint is left, {after}");
        var iteration = found.Manifest.Run.Trainer.Iteration;
        Assert.True(iteration >= atLeast && iteration <= atMost, $"iteration {iteration} instead of {atLeast} to {atMost}, {after}");
        Assert.Null(SaverLoop.FindDifference(found));
        return iteration;
    }

    /// <summary>The process that saves.</summary>
    private sealed partial class Saver : IDisposable
    {
        private readonly Process process;

        public Saver(string root)
        {
            var program = Assembly.GetExecutingAssembly().Location;
            var start = new ProcessStartInfo(Path.GetFullPath(Path.Combine(RuntimeEnvironment.GetRuntimeDirectory(), "..", "..", "..", "dotnet")), ["exec", program])
            {
                RedirectStandardInput = true, RedirectStandardOutput = true,
            };
            start.Environment[SaverProcess.Variable] = root;
            start.Environment["DOTNET_TieredCompilation"] = "0"; // no compiling threads of its own
            process = Process.Start(start) ?? throw new InvalidOperationException("The process did not start.");
            if (process.StandardOutput.ReadLine() != "ready") throw new InvalidOperationException("The process is not ready.");
        }

        public int Id => process.Id;

        /// <returns>What the process says; empty when it was killed.</returns>
        public async Task<string> SaveAsync(long iteration)
        {
            try
            {
                await process.StandardInput.WriteLineAsync(iteration.ToString(CultureInfo.InvariantCulture));
                await process.StandardInput.FlushAsync(TestContext.Current.CancellationToken);
            }
            catch (IOException)
            {
                return "";
            }
            return await process.StandardOutput.ReadLineAsync(TestContext.Current.CancellationToken) ?? "";
        }

        /// <summary>Counts the system calls of one save on its thread.</summary>
        public async Task<IReadOnlyList<(string Call, int Count)>> CountAsync(long iteration, ITestOutputHelper output)
        {
            var log = Path.GetTempFileName();
            await using (await Tracer.AttachAsync(Id, $"trace={Calls}", log)) Assert.Equal("committed", await SaveAsync(iteration));
            var lines = (await File.ReadAllLinesAsync(log, TestContext.Current.CancellationToken)).Select(line => Line().Match(line)).Where(match => match.Success).ToList();
            File.Delete(log);
            var thread = lines.First(match => match.Groups[2].Value.StartsWith("fsync", StringComparison.Ordinal)).Groups[1].Value;
            var counts = lines.Where(match => match.Groups[1].Value == thread).GroupBy(match => match.Groups[2].Value).Select(group => (Call: group.Key, Count: group.Count()))
                .OrderBy(pair => pair.Call, StringComparer.Ordinal).ToList();
            output.WriteLine($"a save makes {counts.Sum(pair => pair.Count)} system calls: {string.Join(", ", counts.Select(pair => $"{pair.Count} {pair.Call}"))}");
            return counts;
        }

        public void Dispose()
        {
            if (!process.HasExited) process.Kill();
            process.Dispose();
        }

        [GeneratedRegex(@"^(\d+)\s+(\w+)\(", RegexOptions.CultureInvariant)]
        private static partial Regex Line();
    }

    /// <summary>strace, attached until disposed.</summary>
    private sealed class Tracer : IAsyncDisposable
    {
        private readonly Process process;
        private readonly Task<string> rest;

        private Tracer(Process process, Task<string> rest) => (this.process, this.rest) = (process, rest);

        public static async Task<Tracer> AttachAsync(int processId, string expression, string log = "/dev/null")
        {
            var start = new ProcessStartInfo("strace", ["-f", "-p", processId.ToString(CultureInfo.InvariantCulture), "-o", log, "-e", expression]) { RedirectStandardError = true };
            var process = Process.Start(start) ?? throw new InvalidOperationException("strace did not start; install it.");
            var line = await process.StandardError.ReadLineAsync(TestContext.Current.CancellationToken) ?? "";
            if (!line.Contains("attached", StringComparison.Ordinal)) throw new InvalidOperationException($"strace: {line}");
            return new Tracer(process, process.StandardError.ReadToEndAsync());
        }

        public async ValueTask DisposeAsync()
        {
            if (!process.HasExited)
            {
                using var kill = Process.Start("kill", ["-INT", process.Id.ToString(CultureInfo.InvariantCulture)]);
                await kill.WaitForExitAsync();
            }
            await process.WaitForExitAsync();
            await rest;
            process.Dispose();
        }
    }
}
