using System.Diagnostics;
using System.Net;
using System.Net.Sockets;

namespace Megatron.Compute.Distributed;

/// <summary>
/// A rank's port: takes the connections of its peers, checks their hello and keeps them until the group that they belong to is opened here.
/// One thread serves all callers without blocking on any, so bytes that are no hello, or a caller that stays silent, delay nobody.
/// </summary>
internal sealed class TcpAcceptor : IDisposable
{
    private const int MaxCallers = 256;
    private static readonly TimeSpan HelloTimeout = TimeSpan.FromSeconds(5);
    private static readonly TimeSpan PollInterval = TimeSpan.FromMilliseconds(500);

    // A Monitor object and not a Lock: Claim waits on it for pulses.
    private readonly object gate = new();
    private readonly Socket listener;
    private readonly byte[] attemptHash;
    private readonly byte[] token;
    private readonly int rank;
    private readonly Thread thread;
    private readonly List<Caller> callers = [];
    private readonly Dictionary<TcpChannelKey, Socket> arrived = [];
    private readonly HashSet<TcpChannelKey> seen = [];
    private bool isClosed;

    public IPEndPoint EndPoint { get; }

    public TcpAcceptor(IPAddress address, byte[] attemptHash, byte[] token, int rank)
    {
        (this.attemptHash, this.token, this.rank) = (attemptHash, token, rank);
        listener = new Socket(address.AddressFamily, SocketType.Stream, ProtocolType.Tcp) { Blocking = false };
        listener.Bind(new IPEndPoint(address, 0));
        listener.Listen(512);
        EndPoint = (IPEndPoint)(listener.LocalEndPoint ?? throw new InvalidOperationException("A bound socket has an address."));
        thread = new Thread(Loop) { IsBackground = true, Name = $"rank {rank} accept" };
        thread.Start();
    }

    /// <summary>The connection that a peer made, waiting for it; null when it did not come in time or the port was closed.</summary>
    public Socket? Claim(TcpChannelKey key, TimeSpan timeout)
    {
        var started = Stopwatch.GetTimestamp();
        lock (gate)
        {
            while (true)
            {
                if (isClosed) return null;
                if (arrived.Remove(key, out var socket)) return socket;
                var left = timeout - Stopwatch.GetElapsedTime(started);
                if (left <= TimeSpan.Zero) return null;
                Monitor.Wait(gate, left < TcpRoster.LongestWait ? left : TcpRoster.LongestWait);
            }
        }
    }

    /// <summary>Takes no more callers and releases those who wait in <see cref="Claim"/>.</summary>
    public void Dispose()
    {
        lock (gate)
        {
            isClosed = true;
            Monitor.PulseAll(gate);
        }
        using (var waker = new Socket(EndPoint.AddressFamily, SocketType.Stream, ProtocolType.Tcp) { Blocking = false })
        {
            try
            {
                waker.Connect(EndPoint); // only a caller ends the thread's wait before its interval
            }
            catch (SocketException)
            {
                // Under way, as it does not block; or not possible, and then the interval ends the wait.
            }
            thread.Join();
        }
    }

    private void Loop()
    {
        var readable = new List<Socket>();
        while (!Volatile.Read(ref isClosed))
        {
            readable.Clear();
            readable.Add(listener);
            foreach (var caller in callers) readable.Add(caller.Socket);
            Socket.Select(readable, null, null, PollInterval);
            foreach (var caller in callers.ToArray())
            {
                if (readable.Contains(caller.Socket)) Serve(caller);
                else if (Stopwatch.GetElapsedTime(caller.Started) > HelloTimeout) Drop(caller);
            }
            if (readable.Contains(listener)) Accept();
        }
        listener.Dispose();
        foreach (var caller in callers) caller.Socket.Dispose();
        lock (gate)
            foreach (var socket in arrived.Values) socket.Dispose();
    }

    private void Accept()
    {
        try
        {
            var socket = listener.Accept();
            socket.Blocking = false;
            if (callers.Count >= MaxCallers) Drop(callers[0]);
            callers.Add(new Caller(socket, Stopwatch.GetTimestamp()));
        }
        catch (SocketException)
        {
            // The caller went away before it was accepted; the next one is not concerned.
        }
    }

    private void Serve(Caller caller)
    {
        var numRead = caller.Socket.Receive(caller.Hello.AsSpan(caller.NumRead), SocketFlags.None, out var error);
        if (error == SocketError.WouldBlock) return;
        if (error != SocketError.Success || numRead == 0)
        {
            Drop(caller);
            return;
        }
        caller.NumRead += numRead;
        if (caller.NumRead < TcpHello.Length) return;
        if (TcpHello.Parse(caller.Hello) is not { } hello)
        {
            Drop(caller);
            return;
        }
        var welcome = Judge(hello);
        caller.Socket.Send([(byte)welcome], SocketFlags.None, out error);
        if (welcome != TcpWelcome.Accepted || error != SocketError.Success)
        {
            Drop(caller);
            return;
        }
        callers.Remove(caller);
        lock (gate)
        {
            seen.Add(hello.Key);
            arrived.Add(hello.Key, caller.Socket);
            Monitor.PulseAll(gate);
        }
    }

    private TcpWelcome Judge(TcpHello hello)
    {
        if (!hello.AttemptHash.AsSpan().SequenceEqual(attemptHash)) return TcpWelcome.StaleAttempt;
        if (hello.ToRank != rank || hello.Key.FromRank <= rank || !hello.Token.AsSpan().SequenceEqual(token)) return TcpWelcome.WrongRank;
        lock (gate) return seen.Contains(hello.Key) ? TcpWelcome.Duplicate : TcpWelcome.Accepted;
    }

    private void Drop(Caller caller)
    {
        callers.Remove(caller);
        caller.Socket.Dispose();
    }

    private sealed class Caller(Socket socket, long started)
    {
        public Socket Socket => socket;

        public long Started => started;

        public byte[] Hello { get; } = new byte[TcpHello.Length];

        public int NumRead { get; set; }
    }
}
